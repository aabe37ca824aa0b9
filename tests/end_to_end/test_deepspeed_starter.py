"""Workers started by DeepSpeed's single-node launcher, with its engine: bit-identical to those started by torchrun."""

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
from tests.helpers.faulty import FaultInjection, Moment, inject_fault
from tests.helpers.processes import LaunchProcess, run_command, start_launch, wait_until
from tests.helpers.runs import newest_weights, read_records

ONE_NODE = ("--nodes", "1", "--gpus", "2")
FOURTEEN_STEPS = ("--set", "train.max_steps=14", "--set", "checkpoint.every_steps=4")
ENGINE = ("--engine", "deepspeed", "--set", "engine.zero_stage=2")
BY_DEEPSPEED = ("--starter", "deepspeed", "--max-restarts", "2")


@pytest.fixture(scope="module")
def by_torchrun(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return an uninterrupted run of two workers on one node."""
    with start_launch(
        tmp_path_factory.mktemp("torchrun"), "run", (*arguments, *ONE_NODE, *ENGINE, *FOURTEEN_STEPS)
    ) as run:
        code, output = run.wait_for_end()
    assert code == 0, output
    return run.run


def attempt(run: RunDir, number: int) -> dict[str, Any]:
    return dict(json.loads(run.attempt(number).read_text()))


def holds_in_three_attempts(moment: Moment) -> None:
    """Hold rank 1 at one step of each attempt."""
    if moment.attempt_rank_step in ((1, 1, 6), (2, 1, 10), (3, 1, 11)):
        moment.hold()


def wait_for(run: LaunchProcess, fault: FaultInjection, number: int, newest: int) -> None:
    """Wait until rank 1 holds in attempt `number` and the newest checkpoint is `newest`."""
    wait_until(fault.hold_marker(attempt=number, rank=1).exists, f"attempt {number} at its step")
    wait_until(lambda: run.run.newest_step() == newest, f"checkpoint {newest}")


@needs_deepspeed
@pytest.mark.fault("F1", "F5")
def test_a_run_by_deepspeeds_launcher_with_two_kills_and_a_stop_equals_one_by_torchrun(
    arguments: tuple[str, ...], by_torchrun: RunDir, tmp_path: Path
) -> None:
    """Kill a worker, then a launcher of DeepSpeed; stop the third attempt by SIGTERM; then resume the run."""
    fault = inject_fault(tmp_path / "fault", holds_in_three_attempts)
    with start_launch(tmp_path, "run", (*arguments, *ENGINE, *FOURTEEN_STEPS, *BY_DEEPSPEED), env=fault.env) as run:
        wait_for(run, fault, number=1, newest=4)
        run.worker(1).kill()
        wait_for(run, fault, number=2, newest=8)
        run.starter(1).kill()
        wait_for(run, fault, number=3, newest=8)
        everything = run.descendants()
        run.starter(0).send_signal(signal.SIGTERM)
        fault.release()
        code, output = run.wait_for_end()
    assert code == 75, output
    assert not psutil.wait_procs(everything, timeout=5)[1]
    first, second = (attempt(run.run, number)["cause"] for number in (1, 2))
    assert first.startswith("rank 1 (pid")
    assert "killed by SIGKILL" in first
    assert second == "node 1: its starter was killed by SIGKILL"
    resumed = run_command("fmfsd-launch", "resume", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert DEEPSPEED in run.run.plan.read_text()
    assert read_records(run.run) == read_records(by_torchrun)
    assert newest_weights(run.run) == newest_weights(by_torchrun)


@needs_deepspeed
def test_a_run_of_the_deepspeed_engine_is_evaluated_and_resumed_by_the_torch_engine(
    arguments: tuple[str, ...], by_torchrun: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(by_torchrun.path, tmp_path / "run")
    evaluated = run_command("fmfsd", "evaluate", "run", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    sixteen = ("--engine", "torch", *FOURTEEN_STEPS, "--set", "train.max_steps=16")
    with start_launch(tmp_path, "run", (*arguments, *sixteen)) as run:
        code, output = run.wait_for_end()
    assert code == 0, output
    assert [each["step"] for each in read_records(run.run) if each["split"] == "train"] == list(range(1, 17))


def test_an_import_error_of_deepspeed_is_reported_with_its_own_message(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """The checks see the stub's name and version only; its import fails at the start."""
    modules = tmp_path / "modules"
    for folder in ("deepspeed", "deepspeed-0.19.8.dist-info"):
        (modules / folder).mkdir(parents=True)
    (modules / "deepspeed" / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    (modules / "deepspeed-0.19.8.dist-info" / "METADATA").write_text("Name: deepspeed\nVersion: 0.19.8\n")
    env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(modules), os.environ.get("PYTHONPATH")]))}
    with start_launch(tmp_path, "run", (*arguments, *ONE_NODE, "--starter", "deepspeed"), env=env) as run:
        code, output = run.wait_for_end()
    assert (code, "node 0: its starter ended with exit code 1" in output) == (1, True), output
    assert "ImportError: libcudart.so.12: cannot open\n" in output
