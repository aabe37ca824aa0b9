"""`fmfsd-launch --drill` as a user runs it: real faults, and a table with the result of each."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.faulty import Moment, inject_fault
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import LaunchProcess, run_command, start_launch

TWO_NODES = ("--nodes", "2", "--gpus", "1")


@pytest.fixture
def arguments(tiny_root: Path) -> tuple[str, ...]:
    """Return the arguments of a launch that makes about 50 steps a second."""
    changes = ("data.shards=16", "train.batch=16", "train.epochs=1000")
    return tiny_arguments(tiny_root, *changes, workers=(1, 2))


def slows_every_step(_: Moment) -> None:
    """Slow steps down, so that few steps suffice for a drill and the CPUs are free for the fault."""
    time.sleep(0.4)


@pytest.mark.fault("F1", "F3", "F5", "F7", "F11")
@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk and a cut link need root")
def test_every_fault_is_detected_and_the_result_equals_the_undisturbed_run(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """The drill's disk and network are removed afterwards."""
    mounts = Path("/proc/mounts").read_text()
    drill = ("drill", *arguments, "--seed", "3", "--run-dir", "drill", "--json")
    slow = inject_fault(tmp_path / "slow", slows_every_step)
    done = run_command("fmfsd-launch", *drill, *TWO_NODES, cwd=tmp_path, env=slow.env, timeout_s=900)
    faults = {each["fault"]: each for each in json.loads(done.stdout)["faults"]}
    assert list(faults) == ["preempt", "kill-worker", "kill-agent", "hang", "disk-full", "cut-link"]
    assert all(each["good"] and not each["skipped"] for each in faults.values()), done.stderr
    assert done.returncode == 0
    killed, silent = (
        [faults[name]["noticed_s"] for name in names] for names in (("kill-worker", "kill-agent"), ("hang", "cut-link"))
    )
    assert max(killed) < min(silent), "an exit is detected immediately, a hang only by a timeout"
    assert 5 < min(silent) <= max(silent) < 120, "the timeout grows with the slowest step of a busy machine"
    assert all(faults[name]["lost_steps"] == 0 for name in ("preempt", "disk-full"))
    assert "is the network between them cut?" in done.stderr
    assert Path("/proc/mounts").read_text() == mounts


def test_an_interrupted_drill_ends(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """The interrupt is not mistaken for a fault of the drill."""
    config, *options = arguments
    with start_launch(tmp_path, "drill", ("drill", config, "preempt,hang", *options)) as drill:
        first = LaunchProcess(drill.process, RunDir(tmp_path / "drill" / "undisturbed"))
        first.wait_for_step(1)
        drill.signal(signal.SIGINT)
        code, output = drill.wait_for_end()
    assert code == 75
    assert output.endswith("the drill was ended\n")
    assert [path.name for path in drill.run.path.iterdir()] == ["undisturbed"]


def test_a_drill_does_not_start_in_a_run_directory(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    config, *options = arguments
    done = run_command("fmfsd-launch", "drill", config, "hang", *options, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_fault_with_unmet_requirements_is_skipped_with_the_reason(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """No run is started without a fault to test."""
    config, *options = arguments
    one_node = ("drill", config, "cut-link", *options, "--run-dir", "drill", "--json")
    done = run_command("fmfsd-launch", *one_node, cwd=tmp_path)
    (fault,) = json.loads(done.stdout)["faults"]
    assert fault["skipped"].startswith("needs ")
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_fault_is_rejected(tmp_path: Path) -> None:
    done = run_command("fmfsd-launch", "drill", "smoke", "kill-worker,earthquake", "--set", "foo=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "unknown fault 'earthquake': choose from preempt, kill-worker" in done.stderr
    assert "--set foo=1" in done.stderr
    assert list(tmp_path.iterdir()) == []
