"""From the workers' last words to the first cause."""

from pathlib import Path
from typing import Any

import pytest

from fmfsd.files import read_json, write_json
from fmfsd.rundir import RunDir
from launcher.failures import first_failure, page
from launcher.hosts.local import LocalAgent
from launcher.supervise import Attempt, NodeState

RESET = "[/x/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer"


class NoAgent(LocalAgent):
    """Stands where an agent would be: nothing is started."""

    def __init__(self) -> None:
        pass


def crash(
    run: RunDir, rank: int, message: str, *, time: float, kind: str = "RuntimeError", expected: bool = False
) -> None:
    content: dict[str, Any] = {
        "rank": rank,
        "node": rank // 2,
        "host": "here",
        "pid": 100 + rank,
        "time": time,
        "step": 7,
        "type": kind,
        "message": message,
        "expected": expected,
        "resumable": True,
        "traceback": f"Traceback of rank {rank}\n",
    }
    write_json(run.crash(1, rank), content)


def progress(run: RunDir, rank: int) -> None:
    write_json(run.rank_progress(rank), {"rank": rank, "pid": 100 + rank, "step": 7, "attempt": 1})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def attempt(run: RunDir, *codes: int | None, trouble: str = "") -> Attempt:
    nodes = [
        NodeState(NoAgent(), exit_code=code, trouble=trouble if number == 0 else "")
        for number, code in enumerate(codes)
    ]
    return Attempt(run, 1, nodes)


def test_the_first_error_is_the_cause_and_lost_connections_are_not(run: RunDir) -> None:
    crash(run, 0, RESET, time=1.0)
    crash(run, 3, "boom", time=2.0, kind="ValueError")
    crash(run, 1, "later", time=3.0)
    failure = first_failure(run, attempt(run, 1, 1))
    assert failure.cause == "rank 3 (node 1, here) after step 7: ValueError: boom"
    assert failure.victims == (0, 1)
    assert failure.detail == "Traceback of rank 3\n"


def test_an_error_that_is_meant_for_people_has_no_traceback(run: RunDir) -> None:
    crash(run, 0, "the loss is not finite", time=1.0, kind="NonFiniteLossError", expected=True)
    text = page(run, first_failure(run, attempt(run, 1)))
    assert text.splitlines()[0] == "run failed: rank 0 (node 0, here) after step 7: the loss is not finite"
    assert "Traceback" not in text


def test_a_worker_that_was_killed_is_named_with_its_signal(run: RunDir) -> None:
    progress(run, 0)
    progress(run, 1)
    crash(run, 0, RESET, time=1.0)
    run.node_logs(0).mkdir(parents=True)
    run.starter_log(0).write_text("  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 101)\n")
    failure = first_failure(run, attempt(run, 1))
    assert failure.cause.startswith("rank 1 (pid 101) after step 7: killed by SIGKILL (by the out-of-memory killer")
    assert failure.victims == (0,)


def test_a_worker_that_its_starter_ended_is_no_cause(run: RunDir) -> None:
    progress(run, 1)
    crash(run, 0, RESET, time=1.0)
    run.node_logs(0).mkdir(parents=True)
    run.starter_log(0).write_text("exitcode  : -15 (pid: 101)\n")
    assert first_failure(run, attempt(run, 1)).cause.startswith("rank 0")


def test_a_killed_agent_or_starter_comes_before_its_victims(run: RunDir) -> None:
    crash(run, 1, RESET, time=1.0)
    assert (
        first_failure(run, attempt(run, None, 1, trouble="its agent was killed")).cause
        == "node 0: its agent was killed"
    )
    assert first_failure(run, attempt(run, 1, -9)).cause == "node 1: its starter was killed by SIGKILL"


def test_without_any_word_the_starters_log_is_shown(run: RunDir) -> None:
    run.node_logs(0).mkdir(parents=True)
    run.starter_log(0).write_text("\n".join(f"line {number}" for number in range(50)))
    failure = first_failure(run, attempt(run, 2))
    assert failure.cause == "node 0: its starter ended with exit code 2"
    assert failure.detail.splitlines()[-1] == "line 49"
    assert len(failure.detail.splitlines()) == 12


def test_nothing_at_all_is_said_too(run: RunDir) -> None:
    assert first_failure(run, attempt(run, 0)).cause == "the workers ended without an outcome"


def test_the_page_ends_with_logs_and_the_way_on(run: RunDir) -> None:
    crash(run, 2, "boom", time=1.0)
    crash(run, 0, RESET, time=2.0)
    lines = page(run, first_failure(run, attempt(run, 1, 1))).splitlines()
    assert lines[0] == "Traceback of rank 2"
    assert lines[2] == "ended because of it: rank 0"
    assert lines[3] == f"logs: {run.logs}"
    assert lines[4] == f"the same command with --run-dir {run.path} begins again: there is no checkpoint yet"
    (run.checkpoints / "step-00000007").mkdir()
    assert page(run, first_failure(run, attempt(run, 1, 1))).endswith("goes on from the newest checkpoint")


def test_a_run_that_can_not_go_on_is_not_said_to(run: RunDir) -> None:
    crash(run, 0, "no checkpoint there can be used", time=1.0, expected=True)
    write_json(run.crash(1, 0), {**read_json(run.crash(1, 0)), "resumable": False})
    failure = first_failure(run, attempt(run, 1))
    assert not failure.resumable
    assert page(run, failure).splitlines()[-1] == f"logs: {run.logs}"
