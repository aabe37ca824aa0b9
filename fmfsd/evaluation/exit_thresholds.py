"""Which thresholds early exits should have: from how sure and how right each head is of each sample."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from fmfsd.data.loading.batches import EvaluationBatches
from fmfsd.distributed.collectives import Comms
from fmfsd.errors import ConfigError, Problem
from fmfsd.evaluation.heads import Predictor

Thresholds = tuple[float, ...]

NEVER = 2.0
"""A threshold that no probability reaches."""
CURVE_POINTS = 40
MOST_TRIED = 20_000
MOST_LEVELS = 200


@dataclass(frozen=True)
class Sureness:
    """Of the early heads, shallow to deep, and then the deepest: the largest class probability (H, N) of each sample,
    and whether the head is right (H, N)."""

    confidence: Tensor
    right: Tensor

    def with_thresholds(self, thresholds: Sequence[float]) -> tuple[float, list[float]]:
        """The accuracy, and the share of samples that leave at each head."""
        inside = torch.ones_like(self.right[0])
        correct, leaving = 0, []
        for number, threshold in enumerate((*thresholds, 0.0)):
            leaves = inside & (self.confidence[number] >= threshold)
            inside = inside & ~leaves
            correct += int((leaves & self.right[number]).sum())
            leaving.append(int(leaves.sum()))
        samples = self.right.shape[1]
        return correct / samples, [count / samples for count in leaving]

    @property
    def deepest_top1(self) -> float:
        return self.right[-1].double().mean().item()


@dataclass(frozen=True)
class CurvePoint:
    """One threshold for all early heads: the accuracy, and the cost and the time that those measured of leaving at each
    head come to."""

    threshold: float
    top1: float
    cost: float
    seconds: float


def sureness(engine: Predictor, batches: EvaluationBatches, early: int, comms: Comms) -> Sureness:
    """Over all workers' samples, on every worker; `early`: how many heads are. Images are held a batch at a time."""
    parts = [
        _of_batch(engine, images, labels, early)
        for images, labels in map(batches.at, range(len(batches)))
        if len(labels)
    ]
    mine = [torch.cat([part[which] for part in parts], dim=1).tolist() if parts else [] for which in (0, 1)]
    known = [part for part in comms.gather(mine) if part[0]]
    confidence, right = (torch.cat([torch.tensor(part[which]) for part in known], dim=1) for which in (0, 1))
    return Sureness(confidence.double(), right.bool())


def _of_batch(engine: Predictor, images: Tensor, labels: Tensor, early: int) -> tuple[Tensor, Tensor]:
    logits = engine.predict(images).logits
    asked = torch.stack([*logits[:early], logits[-1]]).double()
    return asked.softmax(dim=2).amax(dim=2).cpu(), (asked.argmax(dim=2) == labels).cpu()


def curve(sure: Sureness, costs: Sequence[float], seconds: Sequence[float]) -> tuple[CurvePoint, ...]:
    """From all samples to none leaving early, by shares of the early heads' confidences; costs and times by head."""
    levels = [0.0, *_levels(sure.confidence[:-1].flatten(), CURVE_POINTS), NEVER]
    return tuple(_point(sure, level, costs, seconds) for level in levels)


def _point(sure: Sureness, threshold: float, costs: Sequence[float], seconds: Sequence[float]) -> CurvePoint:
    top1, leaving = sure.with_thresholds([threshold] * (len(costs) - 1))
    return CurvePoint(min(threshold, 1.0), top1, _cost(leaving, costs), _cost(leaving, seconds))


def cheapest(sure: Sureness, costs: Sequence[float], least_top1: float) -> Thresholds | None:
    """Thresholds, one an early head, that keep `least_top1` on these samples at the lowest cost; None if none do.

    They are tried on a grid of each head's own confidences, as fine as MOST_TRIED settings allow.
    """
    tried = ((*sure.with_thresholds(setting), setting) for setting in _settings(sure))
    kept = [(_cost(leaving, costs), -top1, setting) for top1, leaving, setting in tried if top1 >= least_top1]
    return min(kept)[2] if kept else None


def _settings(sure: Sureness) -> Iterator[Thresholds]:
    early = sure.confidence[:-1]
    count = min(MOST_LEVELS, int(MOST_TRIED ** (1 / len(early)))) - 1
    return product(*([*_levels(head, count), NEVER] for head in early))


def _levels(confidence: Tensor, count: int) -> list[float]:
    """Values of which equal shares of the confidences lie between two; each once."""
    places = torch.linspace(0, len(confidence) - 1, count).long()
    return sorted(set(confidence.sort().values[places].tolist()))


def _cost(leaving: Sequence[float], costs: Sequence[float]) -> float:
    return sum(share * cost for share, cost in zip(leaving, costs, strict=True))


def parsed_target(text: str) -> float:
    """`accuracy=-0.2`: how much lower than the deepest head's it may be, in percentage points; as a fraction.

    Raises ValueError.
    """
    name, _, value = text.partition("=")
    try:
        points = float(value)
    except ValueError:
        points = math.nan
    if name != "accuracy" or not -100 <= points <= 100:
        raise ValueError("expected accuracy=POINTS, as in accuracy=-0.2 for at most 0.2 points below the deepest head")
    return points / 100


def settings_of(asked: Sequence[str], early: Sequence[str]) -> list[Thresholds]:
    """`--exit-thresholds` by early head. Raises ConfigError with everything that is wrong with them."""
    settings, problems = [], []
    for text in asked:
        try:
            settings.append(_thresholds(text, early))
        except ValueError as error:
            problems.append(Problem(f"--exit-thresholds {text}", str(error)))
    if problems:
        raise ConfigError(problems)
    return settings


def _thresholds(text: str, early: Sequence[str]) -> Thresholds:
    if not early:
        raise ValueError("there is no early exit to measure: leave it out")
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 1 for value in values):
        raise ValueError("expected probabilities above 0 and up to 1 with commas between, as in 0.9,0.95")
    if len(values) not in (1, len(early)):
        raise ValueError(
            f"{len(values)} for {len(early)} early heads ({', '.join(early)}): give one each, or one for all"
        )
    return values * len(early) if len(values) == 1 else values
