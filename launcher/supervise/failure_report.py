"""From all workers' last words to one page: the first cause, who fell because of it, what helps, and the way on."""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.supervise.advice import advice
from launcher.supervise.attempt import Attempt

_VICTIM = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo.*(timed? ?out|error)|timed out waiting|socket timeout|"
    r"remote process exited|nccl.*(abort|unhandled system error)|store.*closed|another worker's",
    re.IGNORECASE,
)
_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)\s*\(pid:\s*(\d+)\)")
_SPAWNED, _RETURN = "process {pid} spawned with command", re.compile(r"exits with return code = (-?\d+)")
"""Of DeepSpeed's launcher, which tells the code of one process that failed, and does not say whose it is."""
_STACK = re.compile(r"^(?:Current thread|Thread) 0x.*\(most recent call first\):$", re.MULTILINE)
_LAST_LINES = 12


@dataclass(frozen=True)
class Failure:
    """The first cause of a failed attempt, as text, and the ranks that fell with it.

    `rank`, `node`, `step` and `time` (seconds since 1970) say where and when, as far as that is known.
    """

    cause: str
    detail: str = ""
    victims: tuple[int, ...] = ()
    resumable: bool = True
    worth_another_attempt: bool = True
    rank: int | None = None
    node: int | None = None
    step: int | None = None
    time: float | None = None
    advises: bool = False
    """The cause's own words say what to do."""
    in_our_code: bool = False
    """It is a mistake of a program, at a line of ours."""

    @property
    def advice(self) -> str:
        words = [line for line in self.detail.splitlines() if not line.startswith(" ")]  # code says timeout_s as well
        return "" if self.advises else advice("\n".join([self.cause, *words]))

    @property
    def fingerprint(self) -> str:
        """The same for failures that differ in numbers only."""
        return re.sub(r"0x[0-9a-f]+|[0-9]+(\.[0-9]+)?", "#", self.cause)


def first_failure(run: RunDir, attempt: Attempt) -> Failure:
    """Which worker failed first, in its own words; a worker that only lost its peers is a victim."""
    crashes = sorted(map(read_json, run.crashes(attempt.number)), key=lambda crash: crash["time"])
    causes = [crash for crash in crashes if not _is_victim(crash)]
    everyone = tuple(crash["rank"] for crash in crashes)
    if causes:
        return _in_own_words(causes[0], crashes)
    if attempt.hang is not None:
        return _of_a_hang(run, attempt, everyone)
    if attempt.trouble:
        return Failure(attempt.trouble, "", everyone, time=attempt.noticed)
    if failure := _of_a_node(attempt, everyone) or _of_a_silent_worker(run, attempt, everyone):
        return failure
    if crashes:
        return _in_own_words(crashes[0], crashes)
    return _starter_words(run, attempt)


def page(run: RunDir, failure: Failure, *, history: str, command: str, repeats: bool = False) -> str:
    """One screen for the end of stderr. `history`: what was tried; `command`: what goes on; `repeats`: the attempts
    before failed in the same way."""
    lines = failure.detail.rstrip().splitlines()[-2 * _LAST_LINES :]
    moment = f" at {datetime.fromtimestamp(failure.time, UTC):%H:%M:%S} UTC" if failure.time else ""
    lines.append(f"run failed{moment}: {failure.cause}")
    if failure.victims:
        lines.append(f"ended because of it: rank {', '.join(map(str, failure.victims))}")
    if failure.advice:
        lines.append(f"likely to help: {failure.advice}")
    lines.append(history)
    if repeats and failure.in_our_code:
        lines.append(
            "this is probably a bug of fmfsd, which your config or data brings out: please report it with this page, "
            f"`fmfsd --version`, and of {run.path} manifest.json, config.yaml and attempts/"
        )
    log = run.rank_log(failure.node, failure.rank) if failure.node is not None and failure.rank is not None else None
    lines.append(f"logs: {log if log and log.exists() else run.logs}")
    if failure.resumable:
        step = run.newest_step()
        lines.append(f"to go on after step {step}:" if step is not None else "to begin again (no checkpoint yet):")
        lines.append(f"  {command}")
    return "\n".join(lines)


def _is_victim(crash: dict[str, Any]) -> bool:
    return bool(_VICTIM.search(crash["message"])) and (not crash["expected"] or "another worker's" in crash["message"])


def _in_own_words(crash: dict[str, Any], crashes: list[dict[str, Any]]) -> Failure:
    step = f" after step {crash['step']}" if crash["step"] else ""
    kind = "" if crash["expected"] else f"{crash['type']}: "
    return Failure(
        f"rank {crash['rank']} (node {crash['node']}, {crash['host']}){step}: {kind}{crash['message']}",
        "" if crash["expected"] else str(crash["traceback"]),
        tuple(other["rank"] for other in crashes if other is not crash),
        resumable=crash["resumable"],
        worth_another_attempt=crash["worth_another_attempt"],
        advises=crash["expected"],
        in_our_code=crash.get("in_our_code", False),
        **{name: crash[name] for name in ("rank", "node", "step", "time")},
    )


def _of_a_hang(run: RunDir, attempt: Attempt, everyone: tuple[int, ...]) -> Failure:
    """With where the ranks that hang stood, as they have written it into their logs."""
    assert attempt.hang is not None
    stacks = (_last_stack(run, attempt, rank) for rank in attempt.hang.blamed or attempt.hang.pids)
    rank = attempt.hang.blamed[0] if attempt.hang.blamed else None
    victims = tuple(rank for rank in attempt.hang.pids if rank not in attempt.hang.blamed)
    return Failure(
        attempt.trouble,
        "\n".join(filter(None, stacks)),
        victims if attempt.hang.blamed else everyone,
        rank=rank,
        node=None if rank is None else _node(attempt, rank),
        time=attempt.noticed,
    )


def _node(attempt: Attempt, rank: int) -> int:
    return rank * len(attempt.nodes) // attempt.num_workers


def _last_stack(run: RunDir, attempt: Attempt, rank: int) -> str:
    """Of the main thread, which is the last one of the attempt's last dump in the rank's log."""
    log = run.rank_log(_node(attempt, rank), rank)
    if log.exists():
        text = log.read_text("utf-8", "replace").rpartition(f"--- attempt {attempt.number}, ")[2]
        if found := list(_STACK.finditer(text)):
            return f"rank {rank} stood, innermost call first:" + "\n".join(
                text[found[-1].end() :].splitlines()[:_LAST_LINES]
            )
    return ""


def _of_a_node(attempt: Attempt, everyone: tuple[int, ...]) -> Failure | None:
    """Nodes whose agent or starter somebody ended from outside."""
    killed = {number: node.killed_from_outside for number, node in enumerate(attempt.nodes)}
    told = [f"node {number}: {what}" for number, what in killed.items() if what]
    return Failure("; ".join(told), "", everyone, time=attempt.noticed) if told else None


def _of_a_silent_worker(run: RunDir, attempt: Attempt, everyone: tuple[int, ...]) -> Failure | None:
    """Workers of this attempt that ended without a word, as a kill leaves them; the first one is the cause."""
    silent = sorted(_silent(run, attempt, everyone), key=lambda worker: worker["rank"] != attempt.dead_rank)
    if not silent:
        return None
    told = [
        f"rank {worker['rank']} (pid {worker['pid']} on {worker['host']}) after step {worker['step']}: "
        f"{_meaning(worker, any(node.oom_kills for node in attempt.nodes))}"
        for worker in silent
    ]
    first = silent[0]
    node = _node(attempt, first["rank"])
    where = {"rank": first["rank"], "node": node, "step": first["step"], "time": attempt.noticed}
    return Failure("; ".join(told), "", everyone, **where)


def _silent(run: RunDir, attempt: Attempt, spoken: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    codes = _exit_codes(run, attempt)
    for path in run.progress.glob("rank-*.json"):
        worker = read_json(path)
        node, is_first = _node(attempt, worker["rank"]), worker["rank"] == attempt.dead_rank
        code = codes.get((node, worker["pid"])) or (_code_after(run, node, worker["pid"]) if is_first else None)
        unforced = code not in (None, 0, -signal.SIGTERM) or is_first
        if worker["attempt"] == attempt.number and worker["rank"] not in spoken and unforced:
            yield {**worker, "code": code}


def _exit_codes(run: RunDir, attempt: Attempt) -> dict[tuple[int, int], int]:
    """Exit codes by node and process, as each node's torchrun tells them in its log, or as its agent saw them."""
    logs = {node: run.starter_log(node) for node in range(len(attempt.nodes))}
    texts = {node: log.read_text("utf-8", "replace") for node, log in logs.items() if log.exists()}
    told = {(node, int(pid)): int(code) for node, text in texts.items() for code, pid in _EXIT.findall(text)}
    seen = {(number, pid): code for number, node in enumerate(attempt.nodes) for pid, code in node.worker_codes.items()}
    return {**told, **seen}


def _code_after(run: RunDir, node: int, pid: int) -> int | None:
    """What DeepSpeed's launcher of that node said last of the processes among which `pid` was; None: nothing."""
    log = run.starter_log(node)
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    found = _RETURN.findall(text.rpartition(_SPAWNED.format(pid=pid))[2]) if _SPAWNED.format(pid=pid) in text else ()
    return int(found[-1]) if found else None


def _meaning(worker: dict[str, Any], out_of_memory: bool) -> str:
    code = worker["code"]
    if code is None:
        return "gone without a word"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if code != -signal.SIGKILL:
        return f"killed by {name}"
    if not out_of_memory:
        return f"killed by {name}: by hand, or as the whole machine ran out of memory"
    return f"killed by {name}: out of memory, at {worker.get('peak_memory_bytes', 0) / 2**30:.2f} GiB"


def _starter_words(run: RunDir, attempt: Attempt) -> Failure:
    """No worker got far enough to say anything: what the nodes' starters said."""
    for number, node in enumerate(attempt.nodes):
        log = run.starter_log(number)
        if node.exit_code != 0 and log.exists():
            last = log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
            who = "a worker" if node.starts_workers else "its starter"
            what = f"node {number}: {who} ended with exit code {node.exit_code}"
            return Failure(what, "\n".join(last), time=attempt.noticed, node=number)
    return Failure("the workers ended without an outcome", time=attempt.noticed)
