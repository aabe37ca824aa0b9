"""The status of a sweep from its folder alone, and stop requests."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import STOP_NOW
from fmfsd.system.atomic_files import write_json
from launcher.config.launch_config import TuneOptions
from launcher.manage.render_status import render_status
from launcher.manage.resume import resume
from launcher.manage.stop import request_cancel, request_stop
from launcher.run_dir.activity import SILENCE_LIMIT_S
from launcher.run_dir.run_lock import Owner
from tests.helpers.sweeps import FakeSweep

ON_OTHER_HOST = replace(Owner.current(), host="elsewhere")
EXITED = replace(Owner.current(), born=1)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[FakeSweep]:
    """Yield a sweep of 12 trials with one of each state."""
    new_sweep = FakeSweep(tmp_path / "sweep", TuneOptions(trials=12, concurrent=2))
    new_sweep.add_trial(0, **{"distill.alpha": 0.25})
    new_sweep.end_trial(0, "finished", seconds=600, deepest_top1=0.431)
    new_sweep.add_trial(1)
    new_sweep.end_trial(1, "failed", seconds=600, cause="rank 0: boom\n\x1b[2J")
    new_sweep.add_trial(2)
    new_sweep.start_attempt(2, step=50)
    new_sweep.add_repeat(3, of=0)
    yield new_sweep
    new_sweep.ledger.close()


def set_owner(new_sweep: FakeSweep, owner: Owner) -> None:
    for run in (new_sweep.dir.coordinator_dir, new_sweep.dir.trial("0002")):
        write_json(run.owner, asdict(owner))


def test_the_status_of_a_sweep_is_one_screen(sweep: FakeSweep) -> None:
    set_owner(sweep, Owner.current())
    assert render_status(sweep.dir.path, as_json=False).splitlines() == [
        f"search      {sweep.dir.path}",
        "state       searching: 3 of 12 ended, about 42 min left",  # (300 + 8 x 600) / 2 s
        f"run by      {Owner.of_run(sweep.dir.coordinator_dir)}",
        "trials      1 finished, 1 failed, 1 repeated, 1 running, 8 waiting",
        "best        0000: valid/deepest_top1 43.10%, distill.alpha 0.25",
        "running     0002 training: step 50 of 100, epoch 2 of 4, 400 images/s",
        "failed      0001: rank 0: boom /",
    ]


def test_the_json_status_has_all_fields(sweep: FakeSweep) -> None:
    set_owner(sweep, Owner.current())
    status = json.loads(render_status(sweep.dir.path, as_json=True))
    assert (status["sweep"], status["state"], status["front"]) == (str(sweep.dir.path), "searching", ["0000"])
    assert status["trials"] == {"finished": 1, "pruned": 0, "failed": 1, "repeated": 1, "running": 1, "waiting": 8}


def test_trials_of_a_sweep_are_shown_as_runs(sweep: FakeSweep) -> None:
    set_owner(sweep, Owner.current())
    assert (
        render_status(sweep.dir.trials, as_json=False) == "0002  training: step 50 of 100, epoch 2 of 4, 400 images/s"
    )


def test_in_a_list_of_runs_a_sweep_is_one_line(sweep: FakeSweep) -> None:
    set_owner(sweep, Owner.current())
    assert render_status(sweep.dir.path.parent, as_json=False) == "sweep  searching: 3 of 12 ended, about 42 min left"


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_an_ended_sweep_has_the_state_of_its_outcome(state: str, sweep: FakeSweep) -> None:
    set_owner(sweep, EXITED)
    write_json(sweep.dir.coordinator_dir.outcome, {"state": state, "cause": "boom" if state == "failed" else ""})
    text = render_status(sweep.dir.path, as_json=False)
    assert f"state       {state}: 3 of 12 ended{'; boom' if state == 'failed' else ''}\n" in text
    assert text.endswith(f"to resume   fmfsd-tune --resume {sweep.dir.path}") == (state != "finished")


def test_a_sweep_whose_driver_exited_is_lost(sweep: FakeSweep) -> None:
    """An outcome older than the driver is that of an earlier driver."""
    write_json(sweep.dir.coordinator_dir.outcome, {"state": "stopped"})
    os.utime(sweep.dir.coordinator_dir.outcome, (1, 1))
    set_owner(sweep, EXITED)
    assert "state       lost: 3 of 12 ended; the coordinator is gone without an outcome" in render_status(
        sweep.dir.path, as_json=False
    )


def test_a_sweep_on_another_host_is_alive_while_a_trial_writes_heartbeats(sweep: FakeSweep) -> None:
    set_owner(sweep, ON_OTHER_HOST)
    for path in sweep.dir.path.rglob("*"):
        os.utime(path, (time.time() - SILENCE_LIMIT_S - 30,) * 2)
    assert "state       lost: " in render_status(sweep.dir.path, as_json=False)
    sweep.start_attempt(2, step=51)
    assert "state       searching: " in render_status(sweep.dir.path, as_json=False)


def test_a_sweep_that_was_never_launched_is_new(tmp_path: Path) -> None:
    new_sweep = FakeSweep(tmp_path / "sweep", TuneOptions(trials=3))
    new_sweep.ledger.close()
    assert "state       new: 0 of 3 ended; the sweep was never started" in render_status(
        new_sweep.dir.path, as_json=False
    )


@pytest.mark.parametrize(("act", "content"), [(request_stop, ""), (request_cancel, STOP_NOW)])
def test_a_sweep_gets_stop_requests_like_a_run(act: Callable[..., str], content: str, sweep: FakeSweep) -> None:
    set_owner(sweep, Owner.current())
    assert act(sweep.dir.path, wait=False).startswith("requested to ")
    assert sweep.dir.coordinator_dir.stop_request.read_text() == content
    assert "state       stopping: 3 of 12 ended" in render_status(sweep.dir.path, as_json=False)


def test_a_sweep_that_is_not_running_gets_no_request(sweep: FakeSweep) -> None:
    set_owner(sweep, EXITED)
    with pytest.raises(CheckError, match="no launch is active there"):
        request_stop(sweep.dir.path, wait=False)


def test_resuming_a_sweep_as_a_run_names_the_right_command(sweep: FakeSweep) -> None:
    with pytest.raises(CheckError, match=f"fmfsd-tune --resume {sweep.dir.path}"):
        resume(sweep.dir.path, wait=False, as_json=False, environment={}, cwd="/", argv=[])
