"""Construction of the trackers in a config."""

from collections.abc import Callable

from fmfsd.config import RunConfig
from fmfsd.config.resume_rules import flatten_keys
from fmfsd.run.run_dir import RunDir
from fmfsd.trackers.feed import Trackers, TrackerThread, Warn
from fmfsd.trackers.tracker import Tracker


def build_trackers(run: RunDir, config: RunConfig, started: float, *, warn: Warn) -> Trackers:
    """Return the config's trackers. `started` is the Unix time of the run's first start.

    A tracker's packages are imported only in its thread.
    """
    factories: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: _tensorboard(run, config, started),
        "wandb": lambda: _wandb(run, config),
    }
    return Trackers([TrackerThread(name, factories[name], warn) for name in config.tracker])


def _tensorboard(run: RunDir, config: RunConfig, started: float) -> Tracker:
    from fmfsd.trackers.tensorboard import EventFile

    return EventFile(run.tensorboard, dict(flatten_keys(config.model_dump(mode="json"))), started)


def _wandb(run: RunDir, config: RunConfig) -> Tracker:
    from fmfsd.trackers.weights_and_biases import WandbRun

    return WandbRun(run, config.model_dump(mode="json"))
