"""Arguments of `fmfsd-launch` for tiny runs."""

import os
from pathlib import Path

from fmfsd.config import RunConfig
from fmfsd.cost.cache import cache_folder, cached_or
from fmfsd.cost.estimate import Device, Probe
from fmfsd.cost.measure.probe import probe
from tests.helpers.runs import DIRECT, SMALL, TINY, tiny_config


def tiny_arguments(root: Path, *changes: str, workers: tuple[int, ...] = (2,)) -> tuple[str, ...]:
    """A TINY run with `changes` on the data in `root`, the folder of `tiny_root`, started without torchrun.

    Its costs on each number of `workers` are in the probe cache.
    """
    cache_costs(tiny_config(root, *changes), *workers)
    return ("cifar100-resnet18", *DIRECT, *overrides(*TINY, f"data.root={root}", *changes))


def small_arguments(root: Path, *, workers: tuple[int, ...] = (2,)) -> tuple[str, ...]:
    """Fourteen steps with a checkpoint after every fourth."""
    return tiny_arguments(root, *SMALL, workers=workers)


def overrides(*changes: str) -> tuple[str, ...]:
    """`--set` for each change."""
    return tuple(part for change in changes for part in ("--set", change))


def cache_costs(config: RunConfig, *workers: int) -> None:
    """Probe `config` in this process: a launch would start a process that takes 8 s of a core to import torch."""

    def probe_on(config: RunConfig, workers: int, device: Device) -> Probe:
        return probe(config, workers=workers, device=device)

    for size in workers:
        cached_or(probe_on, config, size, "cpu", cache_folder(os.environ))
