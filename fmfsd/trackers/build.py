"""The trackers that a config asks for."""

from collections.abc import Callable

from fmfsd.config import RunConfig
from fmfsd.config.resume_rules import leaves
from fmfsd.run.run_dir import RunDir
from fmfsd.trackers.base import Tracker
from fmfsd.trackers.feed import Feed, Trackers, Warn


def build_trackers(run: RunDir, config: RunConfig, started: float, *, warn: Warn) -> Trackers:
    """Nothing of a tracker is imported before its thread begins. `started`: the run, in seconds since 1970."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: _tensorboard(run, config, started),
        "wandb": lambda: _wandb(run, config),
    }
    return Trackers([Feed(name, makers[name], warn) for name in config.tracker])


def _tensorboard(run: RunDir, config: RunConfig, started: float) -> Tracker:
    from fmfsd.trackers.tensorboard import EventFile

    return EventFile(run.tensorboard, dict(leaves(config.model_dump(mode="json"))), started)


def _wandb(run: RunDir, config: RunConfig) -> Tracker:
    from fmfsd.trackers.weights_and_biases import WandbRun

    return WandbRun(run, config.model_dump(mode="json"))
