"""Workers that DeepSpeed's own launcher of one node has started, with its engine: as those of torchrun, to the bit."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmfsd.run.run_dir import RunDir
from launcher.plan.starters import DEEPSPEED
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.faulty import Faulty, Moment, faulty
from tests.helpers.processes import Launched, launched, run_command, wait_until
from tests.helpers.runs import newest_weights, records

ONE_NODE = ("--nodes", "1", "--gpus", "2")
FOURTEEN_STEPS = ("--set", "train.max_steps=14", "--set", "checkpoint.every_steps=4")
ENGINE = ("--engine", "deepspeed", "--set", "engine.zero_stage=2")
BY_DEEPSPEED = ("--starter", "deepspeed", "--max-restarts", "2")


@pytest.fixture(scope="module")
def by_torchrun(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """An uninterrupted run by two workers of one node."""
    with launched(tmp_path_factory.mktemp("torchrun"), "run", (*arguments, *ONE_NODE, *ENGINE, *FOURTEEN_STEPS)) as run:
        code, output = run.end()
    assert code == 0, output
    return run.run


def attempt(run: RunDir, number: int) -> dict[str, Any]:
    return dict(json.loads(run.attempt(number).read_text()))


def holds_in_three_attempts(moment: Moment) -> None:
    """On rank 1."""
    if moment.at in ((1, 1, 6), (2, 1, 10), (3, 1, 11)):
        moment.hold()


def wait_for(run: Launched, fault: Faulty, number: int, newest: int) -> None:
    """Until rank 1 holds in that attempt, with that checkpoint."""
    wait_until(fault.held(attempt=number, rank=1).exists, f"attempt {number} at its step")
    wait_until(lambda: run.run.newest_step() == newest, f"checkpoint {newest}")


@needs_deepspeed
@pytest.mark.fault("F1", "F5")
def test_a_run_by_deepspeeds_launcher_that_is_killed_twice_and_stopped_ends_as_one_by_torchrun(
    arguments: tuple[str, ...], by_torchrun: RunDir, tmp_path: Path
) -> None:
    """A killed worker, a killed launcher of DeepSpeed's, one that is told to stop; then it is resumed as it was."""
    fault = faulty(tmp_path / "fault", holds_in_three_attempts)
    with launched(tmp_path, "run", (*arguments, *ENGINE, *FOURTEEN_STEPS, *BY_DEEPSPEED), env=fault.env) as run:
        wait_for(run, fault, number=1, newest=4)
        run.worker(1).kill()
        wait_for(run, fault, number=2, newest=8)
        run.starter(1).kill()
        wait_for(run, fault, number=3, newest=8)
        everything = run.everything()
        run.starter(0).send_signal(signal.SIGTERM)
        fault.go()
        code, output = run.end()
    assert code == 75, output
    assert not psutil.wait_procs(everything, timeout=5)[1]
    first, second = (attempt(run.run, number)["cause"] for number in (1, 2))
    assert first.startswith("rank 1 (pid")
    assert "killed by SIGKILL" in first
    assert second == "node 1: its starter was killed by SIGKILL"
    resumed = run_command("fmfsd-launch", "resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert DEEPSPEED in run.run.plan.read_text()
    assert records(run.run) == records(by_torchrun)
    assert newest_weights(run.run) == newest_weights(by_torchrun)


@needs_deepspeed
def test_what_its_engine_has_trained_is_evaluated_and_goes_on_by_pytorchs(
    arguments: tuple[str, ...], by_torchrun: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(by_torchrun.path, tmp_path / "run")
    evaluated = run_command("fmfsd", "evaluate", "run", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    sixteen = ("--engine", "torch", *FOURTEEN_STEPS, "--set", "train.max_steps=16")
    with launched(tmp_path, "run", (*arguments, *sixteen)) as run:
        code, output = run.end()
    assert code == 0, output
    assert [each["step"] for each in records(run.run) if each["split"] == "train"] == list(range(1, 17))


def test_a_deepspeed_that_can_not_be_imported_is_told_in_its_own_words(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """A stand-in, which is only found by its name and release before it is started."""
    modules = tmp_path / "modules"
    for folder in ("deepspeed", "deepspeed-0.19.8.dist-info"):
        (modules / folder).mkdir(parents=True)
    (modules / "deepspeed" / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    (modules / "deepspeed-0.19.8.dist-info" / "METADATA").write_text("Name: deepspeed\nVersion: 0.19.8\n")
    env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(modules), os.environ.get("PYTHONPATH")]))}
    with launched(tmp_path, "run", (*arguments, *ONE_NODE, "--starter", "deepspeed"), env=env) as run:
        code, output = run.end()
    assert (code, "node 0: its starter ended with exit code 1" in output) == (1, True), output
    assert "ImportError: libcudart.so.12: cannot open\n" in output
