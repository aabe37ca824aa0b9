"""Workers that hang: the one that hangs is blamed, in time, with where it stands; and not those that wait for it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmfsd.rundir import RunDir
from tests.helpers.faulty import Faulty, Moment, faulty
from tests.helpers.processes import launched, wait_until
from tests.helpers.runs import TINY

TIMEOUT_S = 5.0
NOTICED_WITHIN_S = TIMEOUT_S + 5


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    changes = (*TINY, f"data.root={tiny_root}", "data.shards=16", "train.batch=16", "train.max_steps=8")
    options = ("--gpus", "2", "--hang-timeout", f"{TIMEOUT_S:g}")
    return ("cifar100-resnet18", *options, *(part for change in changes for part in ("--set", change)))


def first_attempt(run: RunDir) -> dict[str, Any]:
    return dict(json.loads(run.attempt(1).read_text()))


def assert_noticed_in_time(run: RunDir, fault: Faulty) -> None:
    since = fault.held(attempt=1, rank=1).stat().st_mtime
    took_s = first_attempt(run)["noticed"] - since
    print(f"noticed after {took_s:.2f} s")
    assert TIMEOUT_S - 1 < took_s < NOTICED_WITHIN_S  # a step before the hang may have been seen half a second late


def holds_once(moment: Moment) -> None:
    if moment.at == (1, 1, 3):
        moment.hold()


@pytest.mark.fault("F3")
def test_a_stopped_worker_is_blamed_and_a_new_attempt_finishes(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A process that is stopped has no pulse."""
    fault = faulty(tmp_path / "fault", holds_once)
    with launched(tmp_path, "run", arguments, env=fault.env) as run:
        wait_until(fault.held(attempt=1, rank=1).exists, "rank 1 at its step")
        pid = run.worker(1).pid
        run.worker(1).send_signal(signal.SIGSTOP)
        code, output = run.end()
    assert code == 0, output
    cause = first_attempt(run.run)["cause"]
    assert cause.startswith(f"rank 1 (pid {pid} on ")
    assert "it has no pulse, as a stopped process" in cause
    assert "rank 0" not in cause
    assert_noticed_in_time(run.run, fault)


def spins_in_its_loss(moment: Moment) -> None:
    def spin_for_ever(*_: Any) -> None:
        moment.leave_word()
        while True:
            pass

    if (moment.rank, moment.step) == (1, 3):
        moment.replace_loss(spin_for_ever)


def sleeps_in_its_loss(moment: Moment) -> None:
    if (moment.rank, moment.step) == (1, 3):
        moment.replace_loss(lambda *_: moment.hold())


@pytest.mark.fault("F3")
@pytest.mark.parametrize(("fault_of", "function"), [(spins_in_its_loss, "spin_for_ever"), (sleeps_in_its_loss, "hold")])
def test_a_hanging_loss_is_told_with_its_rank_and_stack(
    fault_of: Callable[[Moment], None], function: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    fault = faulty(tmp_path / "fault", fault_of)
    with launched(tmp_path, "run", (*arguments, "--max-restarts", "0"), env=fault.env) as run:
        code, output = run.end()
    assert (code, run.run.last_attempt()) == (1, 1)
    assert_noticed_in_time(run.run, fault)
    page = output.splitlines()
    (stack,) = (number for number, line in enumerate(page) if line == "rank 1 stood, innermost call first:")
    assert page[stack + 1].endswith(f" in {function}")
    (failed,) = (line for line in page if line.startswith("run failed at"))
    assert "rank 1 (pid" in failed
    assert "in train after step 3: hangs, for 5 s or more (--hang-timeout); it waits for no other worker" in failed
    assert "ended because of it: rank 0" in page
    for rank in (0, 1):
        assert "Current thread" in run.run.rank_log(0, rank).read_text()
