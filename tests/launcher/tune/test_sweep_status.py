"""What is said of a search by its folder alone, and how it is asked to stop."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import NOW
from fmfsd.system.atomic_files import write_json
from launcher.config.launch_config import TuneOptions
from launcher.manage.render_status import shown
from launcher.manage.resume import resume
from launcher.manage.stop import request_end, request_stop
from launcher.run_dir.activity import SILENT_S
from launcher.run_dir.run_lock import Owner
from tests.helpers.sweeps import MadeSweep

ELSEWHERE = replace(Owner.me(), host="elsewhere")
GONE = replace(Owner.me(), born=1)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[MadeSweep]:
    """One trial of each kind, of 12."""
    made = MadeSweep(tmp_path / "sweep", TuneOptions(trials=12, concurrent=2))
    made.asked(0, **{"distill.alpha": 0.25})
    made.ended(0, "finished", seconds=600, deepest_top1=0.431)
    made.asked(1)
    made.ended(1, "failed", seconds=600, cause="rank 0: boom\n\x1b[2J")
    made.asked(2)
    made.begun(2, step=50)
    made.repeated(3, of=0)
    yield made
    made.ledger.close()


def owned(made: MadeSweep, owner: Owner) -> None:
    for run in (made.dir.coordination, made.dir.trial("0002")):
        write_json(run.owner, asdict(owner))


def test_a_search_is_one_screen(sweep: MadeSweep) -> None:
    owned(sweep, Owner.me())
    assert shown(sweep.dir.path, as_json=False).splitlines() == [
        f"search      {sweep.dir.path}",
        "state       searching: 3 of 12 ended, about 42 min left",  # (300 + 8 x 600) / 2 s
        f"run by      {Owner.of(sweep.dir.coordination)}",
        "trials      1 finished, 1 failed, 1 repeated, 1 running, 8 waiting",
        "best        0000: valid/deepest_top1 43.10%, distill.alpha 0.25",
        "running     0002 training: step 50 of 100, epoch 2 of 4, 400 images/s",
        "failed      0001: rank 0: boom /",
    ]


def test_a_search_in_json_is_all_that_is_known(sweep: MadeSweep) -> None:
    owned(sweep, Owner.me())
    told = json.loads(shown(sweep.dir.path, as_json=True))
    assert (told["sweep"], told["state"], told["front"]) == (str(sweep.dir.path), "searching", ["0000"])
    assert told["trials"] == {"finished": 1, "pruned": 0, "failed": 1, "repeated": 1, "running": 1, "waiting": 8}


def test_its_trials_are_runs(sweep: MadeSweep) -> None:
    owned(sweep, Owner.me())
    assert shown(sweep.dir.trials, as_json=False) == "0002  training: step 50 of 100, epoch 2 of 4, 400 images/s"


def test_among_runs_it_is_a_line(sweep: MadeSweep) -> None:
    owned(sweep, Owner.me())
    assert shown(sweep.dir.path.parent, as_json=False) == "sweep  searching: 3 of 12 ended, about 42 min left"


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_a_search_that_has_ended_has_its_outcome(state: str, sweep: MadeSweep) -> None:
    owned(sweep, GONE)
    write_json(sweep.dir.coordination.outcome, {"state": state, "cause": "boom" if state == "failed" else ""})
    text = shown(sweep.dir.path, as_json=False)
    assert f"state       {state}: 3 of 12 ended{'; boom' if state == 'failed' else ''}\n" in text
    assert text.endswith(f"to resume   fmfsd-tune --resume {sweep.dir.path}") == (state != "finished")


def test_a_search_whose_driver_is_gone_is_lost(sweep: MadeSweep) -> None:
    """An outcome that is older than the driver is an earlier one's."""
    write_json(sweep.dir.coordination.outcome, {"state": "stopped"})
    os.utime(sweep.dir.coordination.outcome, (1, 1))
    owned(sweep, GONE)
    assert "state       lost: 3 of 12 ended; the coordinator is gone without an outcome" in shown(
        sweep.dir.path, as_json=False
    )


def test_a_search_of_another_host_lives_while_a_trial_is_heard_of(sweep: MadeSweep) -> None:
    owned(sweep, ELSEWHERE)
    for path in sweep.dir.path.rglob("*"):
        os.utime(path, (time.time() - SILENT_S - 30,) * 2)
    assert "state       lost: " in shown(sweep.dir.path, as_json=False)
    sweep.begun(2, step=51)
    assert "state       searching: " in shown(sweep.dir.path, as_json=False)


def test_a_search_that_nobody_has_run_is_new(tmp_path: Path) -> None:
    made = MadeSweep(tmp_path / "sweep", TuneOptions(trials=3))
    made.ledger.close()
    assert "state       new: 0 of 3 ended; the sweep was never started" in shown(made.dir.path, as_json=False)


@pytest.mark.parametrize(("act", "asked"), [(request_stop, ""), (request_end, NOW)])
def test_a_search_is_asked_to_stop_as_a_run_is(act: Callable[..., str], asked: str, sweep: MadeSweep) -> None:
    owned(sweep, Owner.me())
    assert act(sweep.dir.path, wait=False).startswith("asked to ")
    assert sweep.dir.coordination.stop_request.read_text() == asked
    assert "state       stopping: 3 of 12 ended" in shown(sweep.dir.path, as_json=False)


def test_a_search_at_which_nobody_works_is_not_asked(sweep: MadeSweep) -> None:
    owned(sweep, GONE)
    with pytest.raises(CheckError, match="no launch is at work there"):
        request_stop(sweep.dir.path, wait=False)


def test_who_would_resume_a_search_is_told_how(sweep: MadeSweep) -> None:
    with pytest.raises(CheckError, match=f"fmfsd-tune --resume {sweep.dir.path}"):
        resume(sweep.dir.path, wait=False, as_json=False, environment={}, cwd="/", argv=[])
