"""Hangs: the hanging worker is reported in time with its stack, the workers that wait for it are not."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.faulty import FaultInjection, Moment, inject_fault
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import start_launch, wait_until

TIMEOUT_S = 5.0
NOTICED_WITHIN_S = TIMEOUT_S + 5


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    changes = ("data.shards=16", "train.batch=16", "train.max_steps=8")
    options = ("--gpus", "2", "--hang-timeout", f"{TIMEOUT_S:g}")
    return (*tiny_arguments(tiny_root, *changes), *options)


def attempt(run: RunDir, number: int) -> dict[str, Any]:
    return dict(json.loads(run.attempt(number).read_text()))


def assert_noticed_in_time(run: RunDir, fault: FaultInjection, number: int) -> None:
    since = fault.hold_marker(attempt=number, rank=1).stat().st_mtime
    took_s = attempt(run, number)["noticed"] - since
    print(f"noticed after {took_s:.2f} s")
    assert TIMEOUT_S - 1 < took_s < NOTICED_WITHIN_S  # the poll may have seen the last step half a second late


def holds_and_in_the_next_attempt_spins_in_its_loss(moment: Moment) -> None:
    def spin_for_ever(*_: Any) -> None:
        moment.mark_reached()
        while True:
            pass

    if moment.attempt_rank_step == (1, 1, 3):
        moment.hold()
    if moment.attempt_rank_step == (2, 1, 3):
        moment.replace_loss(spin_for_ever)


@pytest.mark.fault("F3")
def test_a_stopped_and_a_spinning_worker_are_blamed_and_the_waiting_one_is_not(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """A stopped process has no heartbeat; for a spinning one the failure page shows the stack."""
    fault = inject_fault(tmp_path / "fault", holds_and_in_the_next_attempt_spins_in_its_loss)
    with start_launch(tmp_path, "run", (*arguments, "--max-restarts", "1"), env=fault.env) as run:
        wait_until(fault.hold_marker(attempt=1, rank=1).exists, "rank 1 at its step")
        pid = run.worker(1).pid
        run.worker(1).send_signal(signal.SIGSTOP)
        code, output = run.wait_for_end()
    assert (code, run.run.last_attempt()) == (1, 2), output
    assert_noticed_in_time(run.run, fault, 1)
    assert_noticed_in_time(run.run, fault, 2)
    cause = attempt(run.run, 1)["cause"]
    assert cause.startswith(f"rank 1 (pid {pid} on ")
    assert "it has no heartbeat, like a stopped process" in cause
    assert "rank 0" not in cause
    page = output.splitlines()
    (stack,) = (number for number, line in enumerate(page) if line == "stack of rank 1, innermost call first:")
    assert page[stack + 1].endswith(" in spin_for_ever")
    (failed,) = (line for line in page if line.startswith("run failed at"))
    assert "rank 1 (pid" in failed
    assert "in train after step 3: hangs, for 5 s or more (--hang-timeout); it waits for no other worker" in failed
    assert "ended because of it: rank 0" in page
    for rank in (0, 1):
        assert "Current thread" in run.run.rank_log(0, rank).read_text()
