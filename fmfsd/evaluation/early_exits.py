"""Early exits measured on a split: accuracy, share of images per exit, multiply-adds and time per image."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.data.loading.batches import EvaluationBatches
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.precision import PrecisionFormat
from fmfsd.evaluation.exit_thresholds import NEVER
from fmfsd.model.early_exit import EarlyExit, EarlyExitOutputs, early_head_names
from fmfsd.model.network import Network
from fmfsd.model.prune import prune

TIMED_BATCHES = (0,) * 3
"""Batches to time for a cost that does not depend on the images: the first one, three times."""

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class MeasuredCost:
    """Mean cost of one image: multiply-adds of convolutions and linear layers, and seconds."""

    macs: float
    seconds: float


@dataclass(frozen=True)
class ExitSetting:
    """Result of `thresholds`, one per early head; `leaving`: the share of the images that exit at each head."""

    thresholds: tuple[float, ...]
    top1: float
    leaving: dict[str, float]
    cost: MeasuredCost


@dataclass(frozen=True)
class ExitTable:
    """Measured early exits.

    `deepest_alone`: cost of the network pruned to the deepest head. `if_all_leave`: by head, cost of an image that
    exits there, the earlier exits included.
    """

    deepest_alone: MeasuredCost
    if_all_leave: dict[str, MeasuredCost]
    settings: tuple[ExitSetting, ...]


def measure_settings(
    network: Network,
    batches: EvaluationBatches,
    form: PrecisionFormat,
    settings: Sequence[tuple[float, ...]],
    comms: Comms,
    *,
    report: Callable[[float], None] = lambda _done: None,
) -> tuple[ExitSetting, ...]:
    """Measure each of `settings` (thresholds by early head) on the batches of all workers.

    Times are of the forward pass only, on this device, in precision `form`, at the size of these batches, after one
    untimed batch. `report` is called with the fraction of the settings that is done.
    """
    measured = []
    for number, thresholds in enumerate(settings, 1):
        measured.append(_setting(EarlyExit(network, thresholds), batches, form, comms))
        report(number / len(settings))
    return tuple(measured)


def measure_costs(
    network: Network, batches: EvaluationBatches, form: PrecisionFormat, comms: Comms
) -> tuple[MeasuredCost, dict[str, MeasuredCost]]:
    """Measure the deepest head alone and an exit at each head, on rank 0's first batch, timed like settings.

    All workers measure and rank 0's result is broadcast, so that no worker waits long in the collective.
    """
    has_images = len(batches.load_batch(0)[1]) > 0
    alone, *costs = comms.broadcast_object(_costs(network, batches, form) if has_images else [])
    names = [name for name, _ in _forced_exits(network)]
    return MeasuredCost(*alone), {name: MeasuredCost(*cost) for name, cost in zip(names, costs, strict=True)}


def _costs(network: Network, batches: EvaluationBatches, form: PrecisionFormat) -> list[tuple[float, float]]:
    """Measure the deepest head alone, then an exit at each head."""
    models = (prune(network), *(EarlyExit(network, thresholds) for _, thresholds in _forced_exits(network)))
    return [astuple(_cost(model, batches, form)) for model in models]


def _forced_exits(network: Network) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield each exit and thresholds that make all images leave there."""
    count = len(early_head_names(network))
    for number, name in enumerate((*early_head_names(network), "deepest")):
        yield name, tuple(NEVER if before < number else 0.0 for before in range(count))


def _setting(model: EarlyExit, batches: EvaluationBatches, form: PrecisionFormat, comms: Comms) -> ExitSetting:
    """Measure one setting in two passes: the FLOP counter would slow down the timed one."""
    hits, leaving = 0, torch.zeros(len(model.head_names), dtype=torch.int64)
    numbers = [number for number in range(len(batches)) if len(batches.load_batch(number)[1])]
    with FlopCounterMode(display=False) as counter:
        for number in numbers:
            inputs, labels = batches.load_batch(number)
            exits: EarlyExitOutputs = _run(model, inputs, form)
            hits += int((exits.logits.argmax(dim=1) == labels).sum())
            leaving += exits.heads.bincount(minlength=len(leaving)).cpu()
    seconds = _time_runs(model, batches, numbers, form) if numbers else 0.0
    sums = torch.tensor([hits, _macs(counter), seconds, *leaving.tolist()], dtype=torch.float64)
    correct, macs, total_s, *counts = comms.all_reduce_(sums.to(batches.device)).tolist()
    images = sum(counts)
    shares = {name: count / images for name, count in zip(model.head_names, counts, strict=True)}
    return ExitSetting(model.thresholds, correct / images, shares, MeasuredCost(macs / images, total_s / images))


def _cost(model: Run, batches: EvaluationBatches, form: PrecisionFormat) -> MeasuredCost:
    images, _ = batches.load_batch(0)
    with FlopCounterMode(display=False) as counter:
        _run(model, images, form)
    seconds = _time_runs(model, batches, TIMED_BATCHES, form)
    return MeasuredCost(_macs(counter) / len(images), seconds / (len(images) * len(TIMED_BATCHES)))


def _macs(counter: FlopCounterMode) -> float:
    return counter.get_total_flops() / 2


def _time_runs(model: Run, batches: EvaluationBatches, numbers: Sequence[int], form: PrecisionFormat) -> float:
    _run(model, batches.load_batch(numbers[0])[0], form)
    return sum(_time_run(model, batches.load_batch(number)[0], form) for number in numbers)


def _time_run(model: Run, images: Tensor, form: PrecisionFormat) -> float:
    inputs = images.contiguous(memory_format=form.memory_format)
    _synchronize(images.device)
    start = time.perf_counter()
    _run(model, inputs, form)
    _synchronize(images.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _run(model: Run, images: Tensor, form: PrecisionFormat) -> Any:
    with torch.no_grad(), form.autocast(images.device.type):
        return model(images.contiguous(memory_format=form.memory_format))
