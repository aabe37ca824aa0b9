"""Failure report: the first cause of a failed attempt, with the likely remedy and the command that resumes the run."""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.supervise.advice import find_remedy
from launcher.supervise.attempt import Attempt

_VICTIM = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo.*(timed? ?out|error)|timed out waiting|socket timeout|"
    r"remote process exited|nccl.*(abort|unhandled system error)|store.*closed|another worker's",
    re.IGNORECASE,
)
_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)\s*\(pid:\s*(\d+)\)")
_SPAWNED, _RETURN = "process {pid} spawned with command", re.compile(r"exits with return code = (-?\d+)")
"""Log lines of DeepSpeed's launcher, which logs the exit code of one failed process, but not its pid."""
_STACK = re.compile(r"^(?:Current thread|Thread) 0x.*\(most recent call first\):$", re.MULTILINE)
_LAST_LINES = 12


@dataclass(frozen=True)
class Failure:
    """The first cause of a failed attempt, as text, and the ranks that failed as a result (`victims`).

    `rank`, `node`, `step` and `time` (seconds since 1970): where and when it failed, None if unknown.
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
    cause_has_remedy: bool = False
    """The text of `cause` contains a remedy."""
    in_our_code: bool = False
    """An exception that is a programming error, raised by a line of fmfsd."""

    @property
    def advice(self) -> str:
        """The likely remedy; "" if none is known or `cause` contains one."""
        # indented lines are code, in which names such as timeout_s would match
        messages = [line for line in self.detail.splitlines() if not line.startswith(" ")]
        return "" if self.cause_has_remedy else find_remedy("\n".join([self.cause, *messages]))

    @property
    def fingerprint(self) -> str:
        """The cause without its numbers: equal for failures that differ in numbers only."""
        return re.sub(r"0x[0-9a-f]+|[0-9]+(\.[0-9]+)?", "#", self.cause)


def find_first_failure(run: RunDir, attempt: Attempt) -> Failure:
    """Return the first failure, with its own message; workers that only lost their peers are victims."""
    crashes = sorted(map(read_json, run.crash_reports(attempt.number)), key=lambda crash: crash["time"])
    causes = [crash for crash in crashes if not _is_victim(crash)]
    crashed_ranks = tuple(crash["rank"] for crash in crashes)
    if causes:
        return _failure_of_crash(causes[0], crashes)
    if attempt.hang is not None:
        return _failure_of_hang(run, attempt, crashed_ranks)
    if attempt.problem:
        return Failure(attempt.problem, "", crashed_ranks, time=attempt.noticed_at)
    if failure := _failure_of_nodes(attempt, crashed_ranks) or _failure_of_silent_workers(run, attempt, crashed_ranks):
        return failure
    if crashes:
        return _failure_of_crash(crashes[0], crashes)
    return _failure_of_starter(run, attempt)


def render_page(run: RunDir, failure: Failure, *, history: str, command: str, repeats: bool = False) -> str:
    """Render one screen for the end of stderr.

    `history`: why no attempt follows; `command` resumes the run; `repeats`: the attempt before failed in the same way.
    """
    lines = failure.detail.rstrip().splitlines()[-2 * _LAST_LINES :]
    time_of_day = f" at {datetime.fromtimestamp(failure.time, UTC):%H:%M:%S} UTC" if failure.time else ""
    lines.append(f"run failed{time_of_day}: {failure.cause}")
    if failure.victims:
        lines.append(f"ended because of it: rank {', '.join(map(str, failure.victims))}")
    if failure.advice:
        lines.append(f"likely to help: {failure.advice}")
    lines.append(history)
    if repeats and failure.in_our_code:
        lines.append(
            "this is probably a bug of fmfsd, triggered by your config or data: please report it with this page, "
            f"`fmfsd --version`, and manifest.json, config.yaml and attempts/ of {run.path}"
        )
    log = run.rank_log(failure.node, failure.rank) if failure.node is not None and failure.rank is not None else None
    lines.append(f"logs: {log if log and log.exists() else run.logs}")
    if failure.resumable:
        step = run.newest_step()
        lines.append(f"to resume after step {step}:" if step is not None else "to start again (no checkpoint yet):")
        lines.append(f"  {command}")
    return "\n".join(lines)


def _is_victim(crash: dict[str, Any]) -> bool:
    return bool(_VICTIM.search(crash["message"])) and (not crash["expected"] or "another worker's" in crash["message"])


def _failure_of_crash(crash: dict[str, Any], crashes: list[dict[str, Any]]) -> Failure:
    step = f" after step {crash['step']}" if crash["step"] else ""
    kind = "" if crash["expected"] else f"{crash['type']}: "
    return Failure(
        f"rank {crash['rank']} (node {crash['node']}, {crash['host']}){step}: {kind}{crash['message']}",
        "" if crash["expected"] else str(crash["traceback"]),
        tuple(other["rank"] for other in crashes if other is not crash),
        resumable=crash["resumable"],
        worth_another_attempt=crash["worth_another_attempt"],
        cause_has_remedy=crash["expected"],
        in_our_code=crash.get("in_our_code", False),
        **{name: crash[name] for name in ("rank", "node", "step", "time")},
    )


def _failure_of_hang(run: RunDir, attempt: Attempt, crashed_ranks: tuple[int, ...]) -> Failure:
    """Return the failure, with the stacks that the hanging ranks dumped into their logs."""
    assert attempt.hang is not None
    stacks = (_last_stack(run, attempt, rank) for rank in attempt.hang.hanging_ranks or attempt.hang.pids)
    rank = attempt.hang.hanging_ranks[0] if attempt.hang.hanging_ranks else None
    victims = tuple(rank for rank in attempt.hang.pids if rank not in attempt.hang.hanging_ranks)
    return Failure(
        attempt.problem,
        "\n".join(filter(None, stacks)),
        victims if attempt.hang.hanging_ranks else crashed_ranks,
        rank=rank,
        node=None if rank is None else _node(attempt, rank),
        time=attempt.noticed_at,
    )


def _node(attempt: Attempt, rank: int) -> int:
    return rank * len(attempt.nodes) // attempt.num_workers


def _last_stack(run: RunDir, attempt: Attempt, rank: int) -> str:
    """Return the main thread's stack, the last one of the attempt's last dump in the rank's log; "" without a dump."""
    log = run.rank_log(_node(attempt, rank), rank)
    if log.exists():
        text = log.read_text("utf-8", "replace").rpartition(f"--- attempt {attempt.number}, ")[2]
        if headers := list(_STACK.finditer(text)):
            return f"stack of rank {rank}, innermost call first:" + "\n".join(
                text[headers[-1].end() :].splitlines()[:_LAST_LINES]
            )
    return ""


def _failure_of_nodes(attempt: Attempt, crashed_ranks: tuple[int, ...]) -> Failure | None:
    """Return the failure of nodes whose agent or starter was killed or lost; None if there are none."""
    killed = {number: node.external_kill for number, node in enumerate(attempt.nodes)}
    causes = [f"node {number}: {cause}" for number, cause in killed.items() if cause]
    return Failure("; ".join(causes), "", crashed_ranks, time=attempt.noticed_at) if causes else None


def _failure_of_silent_workers(run: RunDir, attempt: Attempt, crashed_ranks: tuple[int, ...]) -> Failure | None:
    """Return the failure of workers that ended without a crash file, as after a kill; None if there are none.

    The worker that ended first is the cause.
    """
    silent = sorted(
        _silent_workers(run, attempt, crashed_ranks), key=lambda worker: worker["rank"] != attempt.dead_rank
    )
    if not silent:
        return None
    causes = [
        f"rank {worker['rank']} (pid {worker['pid']} on {worker['host']}) after step {worker['step']}: "
        f"{_describe_exit(worker, any(node.oom_kills for node in attempt.nodes))}"
        for worker in silent
    ]
    first = silent[0]
    node = _node(attempt, first["rank"])
    where = {"rank": first["rank"], "node": node, "step": first["step"], "time": attempt.noticed_at}
    return Failure("; ".join(causes), "", crashed_ranks, **where)


def _silent_workers(run: RunDir, attempt: Attempt, crashed_ranks: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yield the progress files, with the exit code, of workers without a crash file that the launcher did not end."""
    codes = _exit_codes(run, attempt)
    for path in run.progress.glob("rank-*.json"):
        worker = read_json(path)
        node, is_first = _node(attempt, worker["rank"]), worker["rank"] == attempt.dead_rank
        code = codes.get((node, worker["pid"])) or (
            _deepspeed_exit_code(run, node, worker["pid"]) if is_first else None
        )
        not_ended_by_us = code not in (None, 0, -signal.SIGTERM) or is_first
        if worker["attempt"] == attempt.number and worker["rank"] not in crashed_ranks and not_ended_by_us:
            yield {**worker, "code": code}


def _exit_codes(run: RunDir, attempt: Attempt) -> dict[tuple[int, int], int]:
    """Return exit codes by node and pid, as each node's torchrun logged them, or as its agent saw them."""
    logs = {node: run.starter_log(node) for node in range(len(attempt.nodes))}
    texts = {node: log.read_text("utf-8", "replace") for node, log in logs.items() if log.exists()}
    logged = {(node, int(pid)): int(code) for node, text in texts.items() for code, pid in _EXIT.findall(text)}
    reported = {
        (number, pid): code for number, node in enumerate(attempt.nodes) for pid, code in node.worker_codes.items()
    }
    return {**logged, **reported}


def _deepspeed_exit_code(run: RunDir, node: int, pid: int) -> int | None:
    """Return the last exit code that DeepSpeed's launcher logged on that node after it started `pid`, or None."""
    log = run.starter_log(node)
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    codes = _RETURN.findall(text.rpartition(_SPAWNED.format(pid=pid))[2]) if _SPAWNED.format(pid=pid) in text else ()
    return int(codes[-1]) if codes else None


def _describe_exit(worker: dict[str, Any], out_of_memory: bool) -> str:
    code = worker["code"]
    if code is None:
        return "ended without an error report"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if code != -signal.SIGKILL:
        return f"killed by {name}"
    if not out_of_memory:
        return f"killed by {name}: by a user, or because the whole machine ran out of memory"
    return f"killed by {name}: out of memory, at {worker.get('peak_memory_bytes', 0) / 2**30:.2f} GiB"


def _failure_of_starter(run: RunDir, attempt: Attempt) -> Failure:
    """Return the failure with the last log lines of the starter, for workers that failed before they could report."""
    for number, node in enumerate(attempt.nodes):
        log = run.starter_log(number)
        if node.exit_code != 0 and log.exists():
            last = log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
            process = "a worker" if node.starts_workers else "its starter"
            cause = f"node {number}: {process} ended with exit code {node.exit_code}"
            return Failure(cause, "\n".join(last), time=attempt.noticed_at, node=number)
    return Failure("the workers ended without an outcome", time=attempt.noticed_at)
