"""What early exits save, measured on a split: accuracy, who leaves where, multiply-adds and time an image."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.data.batches import EvaluationBatches
from fmfsd.engine.form import Form
from fmfsd.model.early_exit import EarlyExit, Exits, early_heads
from fmfsd.model.network import Network
from fmfsd.model.prune import prune

NEVER = 2.0
"""A threshold that no probability reaches."""
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


def measure_exits(
    network: Network,
    batches: EvaluationBatches,
    form: Form,
    settings: Sequence[tuple[float, ...]],
    *,
    report: Callable[[float], None] = lambda _done: None,
) -> ExitTable:
    """Each of `settings`, thresholds by early head, on all of `batches`; what depends on no image on the first of them.

    Times are those of the network alone, on this device, in `form`, at the size of these batches, after a batch that is
    not timed. `report` is called with the fraction of the settings that is done.
    """
    found = []
    for number, thresholds in enumerate(settings, 1):
        found.append(_setting(EarlyExit(network, thresholds), batches, form))
        report(number / len(settings))
    if_all_leave = {name: _cost(EarlyExit(network, chosen), batches, form) for name, chosen in _forcing(network)}
    return ExitTable(_cost(prune(network), batches, form), if_all_leave, tuple(found))


def _forcing(network: Network) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Each exit, and thresholds that let all images leave there."""
    count = len(early_heads(network))
    for number, name in enumerate((*early_heads(network), "deepest")):
        yield name, tuple(NEVER if before < number else 0.0 for before in range(count))


def _setting(model: EarlyExit, batches: EvaluationBatches, form: Form) -> Setting:
    """Two passes, since counting takes time."""
    correct, leaving = 0, torch.zeros(len(model.head_names), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        for number in range(len(batches)):
            images, labels = batches.at(number)
            found: Exits = _run(model, images, form)
            correct += int((found.logits.argmax(dim=1) == labels).sum())
            leaving += found.heads.bincount(minlength=len(leaving)).cpu()
    seen = int(leaving.sum())
    shares = {name: count / seen for name, count in zip(model.head_names, leaving.tolist(), strict=True)}
    cost = MeasuredCost(_macs(counter) / seen, _seconds(model, batches, range(len(batches)), form) / seen)
    return Setting(model.thresholds, correct / seen, shares, cost)


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
