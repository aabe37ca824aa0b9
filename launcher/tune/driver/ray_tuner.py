"""Runs trials with Ray Tune: resources, scheduler, restarts after lost processes, and callbacks."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import TrialScheduler

from launcher.config.launch_config import LaunchConfig
from launcher.tune.driver.lost_trials import read_loss_reason, survive_memory_kills
from launcher.tune.driver.ray_searcher import SweepSearcher
from launcher.tune.driver.trial_actor import TrialActor, build_placement_group
from launcher.tune.driver.unpickled import EmptyPickle
from launcher.tune.records.trial_resources import TrialResources


def run_trials(
    searcher: SweepSearcher,
    rule: TrialScheduler | None,
    *,
    launch: LaunchConfig,
    resources: TrialResources,
    max_failures: int,
    scratch: Path,
    on_step: Callable[[], None],
) -> None:
    """Run the searcher's trials until it has no more and all have ended. Call `on_step` several times a second.

    Tune writes into `scratch`, which is deleted before and after: nothing in it is needed.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(TrialActor, build_placement_group(launch, resources.cores, resources.gpus)),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=rule,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=_trial_id,
            trial_name_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Callback(searcher, on_step)],
            verbose=0,
        ),
    )
    try:
        with survive_memory_kills():
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _trial_id(trial: RayTrial) -> str:
    return str(trial.trial_id)


class _Callback(EmptyPickle, tune.Callback):
    """Passes events of Tune's loop to the searcher and to `on_step`."""

    def __init__(self, feeder: SweepSearcher, pulse: Callable[[], None]) -> None:
        self._searcher, self._on_step = feeder, pulse

    def on_trial_recover(self, *, trial: RayTrial, **_info: Any) -> None:
        self._searcher.on_trial_restarted(trial.trial_id, read_loss_reason(trial))

    def on_trial_error(self, *, trial: RayTrial, **_info: Any) -> None:
        self._searcher.on_trial_lost(trial.trial_id, read_loss_reason(trial))

    def on_trial_complete(self, *, trial: Any, **_info: Any) -> None:
        """Delete the trial's metric statistics, which are not used: Ray 2.60 never frees these 20 KiB."""
        with suppress(AttributeError):  # other versions of Ray may store them elsewhere
            trial.run_metadata.metric_analysis.clear()
            trial.run_metadata.metric_n_steps.clear()

    def on_step_end(self, **_info: Any) -> None:
        self._on_step()
