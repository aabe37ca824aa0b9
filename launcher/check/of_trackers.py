"""Whether the trackers that a config asks for are there. None is imported."""

from collections.abc import Iterator
from importlib.util import find_spec

from fmfsd.config import TrainConfig
from fmfsd.errors import Problem


def missing(config: TrainConfig) -> Iterator[Problem]:
    """TensorBoard's files need nothing that is not there."""
    if "wandb" in config.tracker and find_spec("wandb") is None:
        yield Problem("tracker: wandb", "not installed in this environment: pip install wandb, or leave it out")
