"""Has Tune carry trials out: how many at a time, in which of Ray's resources, and stopped by which rule."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import TrialScheduler

from launcher.config.launch_config import LaunchConfig
from launcher.tune.driver.lost_trials import memory_kills_survived, reason_of
from launcher.tune.driver.ray_searcher import Feeder
from launcher.tune.driver.trial_actor import Trial, placement
from launcher.tune.driver.unpickled import Unkept
from launcher.tune.records.trial_resources import Shape


def run_trials(
    feeder: Feeder,
    rule: TrialScheduler | None,
    *,
    launch: LaunchConfig,
    shape: Shape,
    max_failures: int,
    scratch: Path,
    pulse: Callable[[], None],
) -> None:
    """Until the feeder has no more and all have ended. `pulse` is called several times a second.

    Tune writes into `scratch`, which is new each time: nothing of what it writes is needed.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(Trial, placement(launch, shape.cores, shape.gpus)),
        tune_config=tune.TuneConfig(
            search_alg=feeder,
            scheduler=rule,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=_folder,
            trial_name_creator=_folder,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Loop(feeder, pulse)],
            verbose=0,
        ),
    )
    try:
        with memory_kills_survived():
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _folder(trial: RayTrial) -> str:
    return str(trial.trial_id)


class _Loop(Unkept, tune.Callback):
    """What we do as Tune's loop goes round."""

    def __init__(self, feeder: Feeder, pulse: Callable[[], None]) -> None:
        self._feeder, self._pulse = feeder, pulse

    def on_trial_recover(self, *, trial: RayTrial, **_info: Any) -> None:
        self._feeder.on_trial_restarted(trial.trial_id, reason_of(trial))

    def on_trial_error(self, *, trial: RayTrial, **_info: Any) -> None:
        self._feeder.on_trial_lost(trial.trial_id, reason_of(trial))

    def on_trial_complete(self, *, trial: Any, **_info: Any) -> None:
        """Forget statistics of its metrics, which nobody reads: Ray 2.60 would keep these 20 KiB for ever."""
        with suppress(AttributeError):  # another Ray may have them elsewhere
            trial.run_metadata.metric_analysis.clear()
            trial.run_metadata.metric_n_steps.clear()

    def on_step_end(self, **_info: Any) -> None:
        self._pulse()
