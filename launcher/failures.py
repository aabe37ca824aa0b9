"""From all workers' last words to one page: the first cause, who fell because of it, and where to read on."""

import re
import signal
from dataclasses import dataclass
from typing import Any

from fmfsd.files import read_json
from fmfsd.rundir import RunDir
from launcher.supervise import Attempt

_VICTIM = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo.*(timed? ?out|error)|timed out waiting|socket timeout|"
    r"remote process exited|nccl.*(abort|unhandled system error)|store.*closed",
    re.IGNORECASE,
)
_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)\s*\(pid:\s*(\d+)\)")
_LAST_LINES = 12


@dataclass(frozen=True)
class Failure:
    """The first cause of a failed attempt, as text, and the ranks that fell with it."""

    cause: str
    detail: str
    victims: tuple[int, ...]
    resumable: bool = True


def first_failure(run: RunDir, attempt: Attempt) -> Failure:
    """Which worker failed first, in its own words; a worker that only lost its peers is a victim."""
    crashes = sorted(map(read_json, run.crashes(attempt.number)), key=lambda crash: crash["time"])
    causes = [crash for crash in crashes if not _is_victim(crash)]
    everyone = tuple(crash["rank"] for crash in crashes)
    if causes:
        victims = tuple(crash["rank"] for crash in crashes if crash is not causes[0])
        return Failure(_headline(causes[0]), _words(causes[0]), victims, causes[0]["resumable"])
    if silent := attempt.trouble or _killed_nodes(attempt) or _silent_workers(run, attempt, crashes):
        return Failure(silent, "", everyone)
    if crashes:
        return Failure(_headline(crashes[0]), _words(crashes[0]), everyone[1:])
    return Failure(*_starter_words(run, attempt), ())


def page(run: RunDir, failure: Failure) -> str:
    """One screen for the end of stderr."""
    lines = [failure.detail.rstrip()] if failure.detail else []
    lines.append(f"run failed: {failure.cause}")
    if failure.victims:
        lines.append(f"ended because of it: rank {', '.join(map(str, failure.victims))}")
    lines.append(f"logs: {run.logs}")
    if failure.resumable:
        has_checkpoint = any(run.checkpoints.glob("step-*"))
        way_on = "goes on from the newest checkpoint" if has_checkpoint else "begins again: there is no checkpoint yet"
        lines.append(f"the same command with --run-dir {run.path} {way_on}")
    return "\n".join(lines)


def _is_victim(crash: dict[str, Any]) -> bool:
    return not crash["expected"] and bool(_VICTIM.search(crash["message"]))


def _headline(crash: dict[str, Any]) -> str:
    step = f" after step {crash['step']}" if crash["step"] else ""
    kind = "" if crash["expected"] else f"{crash['type']}: "
    return f"rank {crash['rank']} (node {crash['node']}, {crash['host']}){step}: {kind}{crash['message']}"


def _words(crash: dict[str, Any]) -> str:
    """The traceback, unless the message is meant to be enough."""
    return "" if crash["expected"] else str(crash["traceback"])


def _silent_workers(run: RunDir, attempt: Attempt, crashes: list[dict[str, Any]]) -> str:
    """Workers of this attempt that ended without a word, as a kill leaves them."""
    spoken = {crash["rank"] for crash in crashes}
    codes = _exit_codes(run, attempt)
    found = []
    for path in sorted(run.progress.glob("rank-*.json")):
        progress = read_json(path)
        code = codes.get(progress["pid"], 0)
        if (
            progress["attempt"] == attempt.number
            and progress["rank"] not in spoken
            and code not in (0, -signal.SIGTERM)
        ):
            found.append(
                f"rank {progress['rank']} (pid {progress['pid']}) after step {progress['step']}: {_meaning(code)}"
            )
    return "; ".join(found)


def _exit_codes(run: RunDir, attempt: Attempt) -> dict[int, int]:
    """Exit codes by process, as each node's starter tells them in its log."""
    logs = [run.starter_log(node) for node in range(len(attempt.nodes))]
    pairs = (match for log in logs if log.exists() for match in _EXIT.findall(log.read_text(errors="replace")))
    return {int(pid): int(code) for code, pid in pairs}


def _meaning(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    likely = " (by the out-of-memory killer, or by hand)" if code == -signal.SIGKILL else ""
    return f"killed by {name}{likely}"


def _killed_nodes(attempt: Attempt) -> str:
    """Nodes whose agent or starter somebody ended from outside."""
    return "; ".join(
        f"node {number}: {node.killed_from_outside}"
        for number, node in enumerate(attempt.nodes)
        if node.killed_from_outside
    )


def _starter_words(run: RunDir, attempt: Attempt) -> tuple[str, str]:
    """No worker got far enough to say anything: what the nodes' starters said."""
    for number, node in enumerate(attempt.nodes):
        log = run.starter_log(number)
        if node.exit_code != 0 and log.exists():
            last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            return f"node {number}: its starter ended with exit code {node.exit_code}", "\n".join(last)
    return "the workers ended without an outcome", ""
