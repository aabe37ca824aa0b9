"""Whether the trackers that a config asks for are there. None is imported."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from fmfsd.config import RunConfig
from fmfsd.errors import Problem

OLDEST_WANDB = (0, 22, 3)
"""The first release that takes the API keys of 86 characters that W&B has issued since late 2025."""


def missing(config: RunConfig) -> Iterator[Problem]:
    """TensorBoard's files need nothing that is not there."""
    if "wandb" not in config.tracker:
        return
    install = f"pip install 'wandb>={'.'.join(map(str, OLDEST_WANDB))}', or leave it out"
    try:
        installed = version("wandb")
    except PackageNotFoundError:
        yield Problem("tracker: wandb", f"not installed in this environment: {install}")
        return
    if tuple(map(int, re.findall(r"\d+", installed)[:3])) < OLDEST_WANDB:
        yield Problem("tracker: wandb", f"release {installed} refuses today's API keys: {install}")
