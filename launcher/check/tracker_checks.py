"""Checks that the trackers that a config requests are installed. None is imported."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from fmfsd.config import RunConfig
from fmfsd.errors import Problem

OLDEST_WANDB = (0, 22, 3)
"""First release that accepts the 86-character API keys that W&B issues since late 2025."""


def check_trackers(config: RunConfig) -> Iterator[Problem]:
    """Check that W&B is installed if it is requested; TensorBoard files need no extra package."""
    if "wandb" not in config.tracker:
        return
    install = f"pip install 'wandb>={'.'.join(map(str, OLDEST_WANDB))}', or leave it out"
    try:
        installed = version("wandb")
    except PackageNotFoundError:
        yield Problem("tracker: wandb", f"not installed in this environment: {install}")
        return
    if tuple(map(int, re.findall(r"\d+", installed)[:3])) < OLDEST_WANDB:
        yield Problem("tracker: wandb", f"release {installed} rejects today's API keys: {install}")
