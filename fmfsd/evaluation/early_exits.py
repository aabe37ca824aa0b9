"""What early exits save, measured on a split: accuracy, who leaves where, multiply-adds and time an image."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.data.loading.batches import EvaluationBatches
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.precision import Form
from fmfsd.evaluation.exit_thresholds import NEVER
from fmfsd.model.early_exit import EarlyExit, Exits, early_heads
from fmfsd.model.network import Network
from fmfsd.model.prune import prune

FIRST_BATCH = (0,) * 3
"""Timed so often, for what costs the same whatever the images are."""

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class MeasuredCost:
    """Of one image, the mean over those that were run: multiply-adds of convolutions and linear layers, and seconds."""

    macs: float
    seconds: float


@dataclass(frozen=True)
class Setting:
    """What thresholds, one an early head, give; `leaving` has the share of the images that left at each head."""

    thresholds: tuple[float, ...]
    top1: float
    leaving: dict[str, float]
    cost: MeasuredCost


@dataclass(frozen=True)
class ExitTable:
    """`deepest_alone`: the network that the deepest head alone needs. `if_all_leave`: what an image costs that leaves
    at that head, where the heads before it have been asked."""

    deepest_alone: MeasuredCost
    if_all_leave: dict[str, MeasuredCost]
    settings: tuple[Setting, ...]


def measure_settings(
    network: Network,
    batches: EvaluationBatches,
    form: Form,
    settings: Sequence[tuple[float, ...]],
    comms: Comms,
    *,
    report: Callable[[float], None] = lambda _done: None,
) -> tuple[Setting, ...]:
    """Each of `settings`, thresholds by early head, on all workers' batches.

    Times are those of the network alone, on this device, in `form`, at the size of these batches, after a batch that is
    not timed. `report` is called with the fraction of the settings that is done.
    """
    found = []
    for number, thresholds in enumerate(settings, 1):
        found.append(_setting(EarlyExit(network, thresholds), batches, form, comms))
        report(number / len(settings))
    return tuple(found)


def measure_costs(
    network: Network, batches: EvaluationBatches, form: Form, comms: Comms
) -> tuple[MeasuredCost, dict[str, MeasuredCost]]:
    """Of the deepest head alone, and of leaving at each, on rank 0's first batch; timed as settings are.

    All workers measure, so that none waits for rank 0 longer than it takes itself.
    """
    has_images = len(batches.at(0)[1]) > 0
    alone, *costs = comms.share(_costs(network, batches, form) if has_images else [])
    names = [name for name, _ in _forcing(network)]
    return MeasuredCost(*alone), {name: MeasuredCost(*cost) for name, cost in zip(names, costs, strict=True)}


def _costs(network: Network, batches: EvaluationBatches, form: Form) -> list[tuple[float, float]]:
    """Of the deepest head alone, then of an image that leaves at each."""
    models = (prune(network), *(EarlyExit(network, thresholds) for _, thresholds in _forcing(network)))
    return [astuple(_cost(model, batches, form)) for model in models]


def _forcing(network: Network) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Each exit, and thresholds that let all images leave there."""
    count = len(early_heads(network))
    for number, name in enumerate((*early_heads(network), "deepest")):
        yield name, tuple(NEVER if before < number else 0.0 for before in range(count))


def _setting(model: EarlyExit, batches: EvaluationBatches, form: Form, comms: Comms) -> Setting:
    """Two passes, since counting takes time."""
    correct, leaving = 0, torch.zeros(len(model.head_names), dtype=torch.int64)
    numbers = [number for number in range(len(batches)) if len(batches.at(number)[1])]
    with FlopCounterMode(display=False) as counter:
        for number in numbers:
            images, labels = batches.at(number)
            found: Exits = _run(model, images, form)
            correct += int((found.logits.argmax(dim=1) == labels).sum())
            leaving += found.heads.bincount(minlength=len(leaving)).cpu()
    seconds = _seconds(model, batches, numbers, form) if numbers else 0.0
    sums = torch.tensor([correct, _macs(counter), seconds, *leaving.tolist()], dtype=torch.float64)
    right, macs, taken, *left = comms.sum_(sums.to(batches.device)).tolist()
    shares = {name: count / sum(left) for name, count in zip(model.head_names, left, strict=True)}
    return Setting(model.thresholds, right / sum(left), shares, MeasuredCost(macs / sum(left), taken / sum(left)))


def _cost(model: Run, batches: EvaluationBatches, form: Form) -> MeasuredCost:
    images, _ = batches.at(0)
    with FlopCounterMode(display=False) as counter:
        _run(model, images, form)
    seconds = _seconds(model, batches, FIRST_BATCH, form)
    return MeasuredCost(_macs(counter) / len(images), seconds / (len(images) * len(FIRST_BATCH)))


def _macs(counter: FlopCounterMode) -> float:
    return counter.get_total_flops() / 2


def _seconds(model: Run, batches: EvaluationBatches, numbers: Sequence[int], form: Form) -> float:
    _run(model, batches.at(numbers[0])[0], form)
    return sum(_timed(model, batches.at(number)[0], form) for number in numbers)


def _timed(model: Run, images: Tensor, form: Form) -> float:
    ready = images.contiguous(memory_format=form.layout)
    _wait_for(images.device)
    start = time.perf_counter()
    _run(model, ready, form)
    _wait_for(images.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _run(model: Run, images: Tensor, form: Form) -> Any:
    with torch.no_grad(), form.autocast(images.device.type):
        return model(images.contiguous(memory_format=form.layout))
