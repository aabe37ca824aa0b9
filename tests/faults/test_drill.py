"""The drill, as a user starts it: every fault for real, and a table that says what became of each."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.faulty import Moment, faulty
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import Launched, launched, run_command

TWO_NODES = ("--nodes", "2", "--gpus", "1")


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    """A launch that makes some 50 steps a second."""
    changes = ("data.shards=16", "train.batch=16", "train.epochs=1000")
    return tiny_arguments(tiny_root, *changes, workers=(1, 2))


def takes_its_time(_: Moment) -> None:
    """So that the fewest steps of a drill are long enough for it, and the machine is free for what is drilled."""
    time.sleep(0.4)


@pytest.mark.fault("F1", "F3", "F5", "F7", "F11")
@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk and a cut link need root")
def test_every_fault_is_noticed_and_the_result_is_that_of_an_undisturbed_run(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """Of the disk and the network that were made nothing is left."""
    mounts = Path("/proc/mounts").read_text()
    drill = ("--drill", "all", "--drill-seed", "3", "--run-dir", "drill", "--json")
    slow = faulty(tmp_path / "slow", takes_its_time)
    done = run_command("fmfsd-launch", *arguments, *TWO_NODES, *drill, cwd=tmp_path, env=slow.env, timeout_s=900)
    faults = {each["fault"]: each for each in json.loads(done.stdout)["faults"]}
    assert list(faults) == ["preempt", "kill-worker", "kill-agent", "hang", "disk-full", "cut-link"]
    assert all(each["good"] and not each["skipped"] for each in faults.values()), done.stderr
    assert done.returncode == 0
    killed, silent = (
        [faults[name]["noticed_s"] for name in names] for names in (("kill-worker", "kill-agent"), ("hang", "cut-link"))
    )
    assert max(killed) < min(silent), "an end is noticed at once, silence only by a timeout"
    assert 5 < min(silent) <= max(silent) < 120, "the timeout grows with the slowest step of a busy machine"
    assert all(faults[name]["lost_steps"] == 0 for name in ("preempt", "disk-full"))
    assert "is the network between them cut?" in done.stderr
    assert Path("/proc/mounts").read_text() == mounts


def test_a_drill_that_is_interrupted_ends(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """And does not take it for a fault of its own."""
    with launched(tmp_path, "drill", (*arguments, "--drill", "preempt,hang")) as drill:
        first = Launched(drill.process, RunDir(tmp_path / "drill" / "undisturbed"))
        first.wait_for_step(1)
        drill.signal(signal.SIGINT)
        code, output = drill.end()
    assert code == 75
    assert output.endswith("the drill was ended\n")
    assert [path.name for path in drill.run.path.iterdir()] == ["undisturbed"]


def test_a_drill_does_not_begin_in_the_folder_of_a_run(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    done = run_command("fmfsd-launch", *arguments, "--drill", "hang", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_fault_that_lacks_something_is_skipped_with_the_reason(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """And nothing is run where no fault is left."""
    one_node = ("--drill", "cut-link", "--run-dir", "drill", "--json")
    done = run_command("fmfsd-launch", *arguments, *one_node, cwd=tmp_path)
    (fault,) = json.loads(done.stdout)["faults"]
    assert fault["skipped"].startswith("needs ")
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = run_command("fmfsd-launch", "smoke", "--drill", "kill-worker,earthquake", cwd=tmp_path)
    assert done.returncode == 2
    assert "unknown fault 'earthquake': choose from preempt, kill-worker" in done.stderr
    assert list(tmp_path.iterdir()) == []
