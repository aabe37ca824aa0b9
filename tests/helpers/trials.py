"""Small trials of a sweep over tiny data."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fmfsd.config import dump_explicit
from launcher.config.environment import forwarded_variables
from launcher.config.launch_config import LaunchConfig
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.driver.trial_run import TrialMachines, TrialRun
from launcher.tune.sweep.trial_spec import TrialSpec
from tests.helpers.runs import TINY

CHANGES = (*TINY, "data.shards=16", "data.valid=30", "train.batch=16", "train.evaluate_test=false")
EPOCHS, STEPS = 2, 28
CPU = LaunchConfig(device="cpu")
TIMEOUT_S = 120.0


def small_sweep(folder: Path, root: Path, *more: str) -> SweepDir:
    """Create a sweep: two epochs of fourteen steps, a checkpoint every four steps, and the config overrides `more`.

    `root` is that of `tiny_root`.
    """
    sweep = SweepDir(folder / "sweep")
    sweep.path.mkdir()
    changes = [*CHANGES, "checkpoint.every_steps=4", f"data.root={root}", *more]
    sweep.config.write_text(dump_explicit("cifar100-resnet18", changes))
    return sweep


def make_trial_spec(
    sweep: SweepDir,
    *overrides: str,
    name: str = "0000",
    launch: LaunchConfig = CPU,
    env: Mapping[str, str] | None = None,
    cores: int = 1,
    wants_costs: bool = False,
) -> TrialSpec:
    """Return the spec of a trial whose environment is that of the test, overridden by `env`."""
    environment = forwarded_variables({**os.environ, **(env or {})})
    return TrialSpec(
        sweep.path, name, overrides, launch, str(sweep.path), environment, cores=cores, wants_costs=wants_costs
    )


@contextmanager
def start_trial(order: TrialSpec) -> Iterator[TrialRun]:
    """Start the trial; end it at the end of the block if it still runs."""
    run = TrialRun(order, TrialMachines.local(order, os.environ))
    try:
        yield run
    finally:
        run.stop_now()


def run_to_end(order: TrialSpec) -> TrialRun:
    with start_trial(order) as run:
        run.wait(TIMEOUT_S)
        assert run.has_ended
    return run
