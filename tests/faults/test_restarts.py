"""Restarts: runs that fail and are finished by new attempts with the same result, and runs that can't be."""

import json
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.run.run_dir import RunDir
from tests.helpers.faulty import FaultInjection, Moment, inject_fault
from tests.helpers.launches import small_arguments
from tests.helpers.processes import LaunchProcess, start_launch, wait_until
from tests.helpers.runs import (
    SMALL,
    assert_records_agree,
    make_loop,
    make_run,
    newest_weights,
    read_records,
    tiny_config,
)

TWO_NODES = ("--nodes", "2", "--gpus", "1")
NOTICED_WITHIN_S = 5.0
"""The documented time is 2 s; the test machine may be busy."""


@pytest.fixture(scope="module")
def arguments(tiny_root: Path) -> tuple[str, ...]:
    return small_arguments(tiny_root)


@pytest.fixture(scope="module")
def whole(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return an uninterrupted run of two workers."""
    with start_launch(tmp_path_factory.mktemp("whole"), "run", (*arguments, *TWO_NODES)) as run:
        assert run.wait_for_end()[0] == 0
    return run.run


def attempts(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(run.attempt(number).read_text()) for number in range(1, run.last_attempt() + 1)]


def fails_once_and_then_holds(moment: Moment) -> None:
    """Fail or hold on rank 1."""
    if moment.attempt_rank_step == (1, 1, 2):
        raise RuntimeError("this happens once")
    if moment.attempt_rank_step in ((2, 1, 6), (3, 1, 11), (4, 1, 13)):
        moment.hold()


@dataclass(frozen=True)
class Kill:
    """The process to kill in `attempt`, once rank 1 holds and checkpoint `newest` exists, and the reported cause."""

    attempt: int
    newest: int
    choose: Callable[[LaunchProcess], psutil.Process]
    cause: str

    def execute(self, run: LaunchProcess, fault: FaultInjection) -> float:
        """Kill the process and return the time."""
        wait_until(fault.hold_marker(attempt=self.attempt, rank=1).exists, f"attempt {self.attempt} at its step")
        wait_until(lambda: run.run.newest_step() == self.newest, f"checkpoint {self.newest}")
        self.choose(run).kill()
        return time.time()

    def assert_reported(self, attempt: dict[str, Any], killed_at: float, output: str) -> None:
        """Assert that the cause was reported in time and that the next attempt resumed from checkpoint `newest`."""
        print(f"{self.cause}: noticed after {attempt['noticed'] - killed_at:.2f} s")
        assert self.cause in attempt["cause"]
        assert attempt["noticed"] - killed_at < NOTICED_WITHIN_S
        assert f"resuming after step {self.newest}\n" in output


KILLS = (
    Kill(2, 4, lambda run: run.worker(1), "rank 1 (pid"),
    Kill(3, 8, lambda run: run.agents()[0], "node 0: its agent is gone"),
    Kill(4, 12, lambda run: run.starter(1), "node 1: its starter was killed by SIGKILL"),
)


@pytest.mark.fault("F1", "F2", "F5")
def test_a_run_with_four_failures_has_the_same_result_as_without(
    arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    """One exception before the first checkpoint and three kills; the result is the same to the last bit."""
    fault = inject_fault(tmp_path / "fault", fails_once_and_then_holds)
    by_torchrun = (*arguments, *TWO_NODES, "--starter", "torchrun")
    with start_launch(tmp_path, "run", by_torchrun, env=fault.env) as run:
        moments = [kill.execute(run, fault) for kill in KILLS]
        code, output = run.wait_for_end()
    assert code == 0, output
    first, *killed, last = attempts(run.run)
    assert [each["state"] for each in (first, *killed, last)] == ["failed"] * 4 + ["finished"]
    assert first["cause"].endswith("step 2: RuntimeError: this happens once")
    for kill, attempt, moment in zip(KILLS, killed, moments, strict=True):
        kill.assert_reported(attempt, moment, output)
    assert read_records(run.run) == read_records(whole)
    assert newest_weights(run.run) == newest_weights(whole)


def always_fails(moment: Moment) -> None:
    if (moment.rank, moment.step) == (1, 6):
        moment.loop.timeline = None


@pytest.mark.fault("F2")
def test_a_bug_gets_two_attempts_and_is_reported_as_a_bug_of_fmfsd(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """With its own message. The second attempt resumed from step 4 and failed at the same step."""
    fault = inject_fault(tmp_path / "fault", always_fails)
    with start_launch(tmp_path, "run", (*arguments, "--gpus", "2"), env=fault.env) as run:
        code, output = run.wait_for_end()
    assert (code, run.run.last_attempt()) == (1, 2)
    page = output[output.index("run failed at") :]
    assert re.search(
        r"rank 1 \(node 0, \S+\) after step 6: AttributeError: 'NoneType' object has no attribute '\w+'\n", page
    )
    assert "\nno attempt follows attempt 2: the same failure twice without a new checkpoint in between\n" in page
    assert "\nto resume after step 4:\n" in page
    assert "fmfsd/training/loop.py" in output
    assert "this is probably a bug of fmfsd, triggered by your config or data: please report it" in page
    assert f"manifest.json, config.yaml and attempts/ of {run.run.path}" in page


def holds_in_the_first_attempt(moment: Moment) -> None:
    if moment.attempt_rank_step == (1, 3, 6):
        moment.hold()


@pytest.mark.fault("F5", "F40")
def test_an_elastic_run_resumes_with_the_remaining_nodes(
    arguments: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    """The result is that of an undisturbed run with one worker."""
    fault, fp64 = inject_fault(tmp_path / "fault", holds_in_the_first_attempt), "train.precision=fp64"
    with start_launch(
        tmp_path, "run", (*arguments, "--elastic", "1:4", "--gpus", "1", "--set", fp64), env=fault.env
    ) as run:
        wait_until(fault.hold_marker(attempt=1, rank=3).exists, "step 6")
        wait_until(lambda: run.run.newest_step() == 4, "checkpoint 4")
        run.agents()[3].kill()
        code, output = run.wait_for_end()
    assert code == 0, output
    assert "3 of 4 nodes remain: resuming with 2 workers on 2; workers must divide data.shards 16" in output
    assert [each["workers"] for each in attempts(run.run)] == [4, 2]
    assert [each["step"] for each in read_records(run.run) if each["split"] == "train"] == list(range(1, 15))
    alone = make_run(tmp_path / "alone", tiny_config(tiny_root, *SMALL, fp64))
    with closing(make_loop(alone, SingleWorkerComms())) as loop:
        loop.resume()
        loop.run()
    assert_records_agree(read_records(alone), read_records(run.run), tolerance=1e-9)
