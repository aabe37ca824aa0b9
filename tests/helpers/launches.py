"""Arguments of `fmfsd-launch` for tiny runs."""

import os
from pathlib import Path

from fmfsd.config import RunConfig
from fmfsd.cost.cache import estimate_cache_dir, read_or_estimate
from fmfsd.cost.cost_report import CostEstimate, Device
from fmfsd.cost.measure.estimate import estimate_cost
from tests.helpers.runs import DIRECT, SMALL, TINY, tiny_config


def tiny_arguments(root: Path, *changes: str, workers: tuple[int, ...] = (2,)) -> tuple[str, ...]:
    """Return the arguments of a TINY run with `changes`, started without torchrun; `root` is that of `tiny_root`.

    Also puts its costs on each number of `workers` into the probe cache.
    """
    cache_costs(tiny_config(root, *changes), *workers)
    return ("cifar100-resnet18", *DIRECT, *overrides(*TINY, f"data.root={root}", *changes))


def small_arguments(root: Path, *, workers: tuple[int, ...] = (2,)) -> tuple[str, ...]:
    """Return the arguments of a run of fourteen steps that saves a checkpoint every four steps."""
    return tiny_arguments(root, *SMALL, workers=workers)


def overrides(*changes: str) -> tuple[str, ...]:
    """Return `--set CHANGE` for each change."""
    return tuple(part for change in changes for part in ("--set", change))


def cache_costs(config: RunConfig, *workers: int) -> None:
    """Probe `config` in this process and cache the result: a launch would start a process that imports torch (8 s)."""

    def run_probe(config: RunConfig, workers: int, device: Device) -> CostEstimate:
        return estimate_cost(config, workers=workers, device=device)

    for size in workers:
        read_or_estimate(run_probe, config, size, "cpu", estimate_cache_dir(os.environ))
