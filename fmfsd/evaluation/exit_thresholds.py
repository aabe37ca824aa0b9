"""Choice of early-exit thresholds, from each head's confidence and correctness on each sample."""

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
"""A threshold above every probability."""
CURVE_POINTS = 40
MAX_SETTINGS = 20_000
MAX_LEVELS = 200


@dataclass(frozen=True)
class HeadConfidences:
    """Confidence of H heads (the early ones, shallow to deep, then the deepest) on N samples.

    `confidence`: the largest class probability (H, N). `correct`: True where the head's prediction is correct (H, N).
    """

    confidence: Tensor
    correct: Tensor

    def apply_thresholds(self, thresholds: Sequence[float]) -> tuple[float, list[float]]:
        """Return the accuracy, and the share of samples that exit at each head."""
        remaining = torch.ones_like(self.correct[0])
        correct, leaving = 0, []
        for number, threshold in enumerate((*thresholds, 0.0)):
            leaves = remaining & (self.confidence[number] >= threshold)
            remaining = remaining & ~leaves
            correct += int((leaves & self.correct[number]).sum())
            leaving.append(int(leaves.sum()))
        samples = self.correct.shape[1]
        return correct / samples, [count / samples for count in leaving]

    @property
    def deepest_top1(self) -> float:
        return self.correct[-1].double().mean().item()


@dataclass(frozen=True)
class CurvePoint:
    """One threshold for all early heads, its accuracy, and the mean cost and time of an image.

    Cost and time are computed from those measured for an exit at each head.
    """

    threshold: float
    top1: float
    cost: float
    seconds: float


def collect_confidences(engine: Predictor, batches: EvaluationBatches, early: int, comms: Comms) -> HeadConfidences:
    """Return the confidences on the samples of all workers, on every worker. `early`: the number of early heads."""
    parts = [
        _batch_confidences(engine, images, labels, early)
        for images, labels in map(batches.load_batch, range(len(batches)))
        if len(labels)
    ]
    local = [torch.cat([part[which] for part in parts], dim=1).tolist() if parts else [] for which in (0, 1)]
    gathered = [part for part in comms.all_gather_object(local) if part[0]]
    confidence, right = (torch.cat([torch.tensor(part[which]) for part in gathered], dim=1) for which in (0, 1))
    return HeadConfidences(confidence.double(), right.bool())


def _batch_confidences(engine: Predictor, images: Tensor, labels: Tensor, early: int) -> tuple[Tensor, Tensor]:
    logits = engine.predict(images).logits
    exits = torch.stack([*logits[:early], logits[-1]]).double()
    return exits.softmax(dim=2).amax(dim=2).cpu(), (exits.argmax(dim=2) == labels).cpu()


def threshold_curve(
    confidences: HeadConfidences, costs: Sequence[float], seconds: Sequence[float]
) -> tuple[CurvePoint, ...]:
    """Return the accuracy-cost curve of one threshold for all early heads, from all samples to none exiting early.

    Its thresholds are quantiles of the early heads' confidences. `costs` and `seconds` are by head.
    """
    levels = [0.0, *_levels(confidences.confidence[:-1].flatten(), CURVE_POINTS), NEVER]
    return tuple(_point(confidences, level, costs, seconds) for level in levels)


def _point(
    confidences: HeadConfidences, threshold: float, costs: Sequence[float], seconds: Sequence[float]
) -> CurvePoint:
    top1, leaving = confidences.apply_thresholds([threshold] * (len(costs) - 1))
    return CurvePoint(min(threshold, 1.0), top1, _cost(leaving, costs), _cost(leaving, seconds))


def find_cheapest_thresholds(
    confidences: HeadConfidences, costs: Sequence[float], least_top1: float
) -> Thresholds | None:
    """Return the thresholds, one per early head, with the lowest cost and at least `least_top1` on these samples.

    None if no setting reaches it. Searches a grid of quantiles of each head's confidences, at most MAX_SETTINGS.
    """
    results = ((*confidences.apply_thresholds(setting), setting) for setting in _settings(confidences))
    candidates = [(_cost(leaving, costs), -top1, setting) for top1, leaving, setting in results if top1 >= least_top1]
    return min(candidates)[2] if candidates else None


def _settings(confidences: HeadConfidences) -> Iterator[Thresholds]:
    early = confidences.confidence[:-1]
    count = min(MAX_LEVELS, int(MAX_SETTINGS ** (1 / len(early)))) - 1
    return product(*([*_levels(head, count), NEVER] for head in early))


def _levels(confidence: Tensor, count: int) -> list[float]:
    """Return the distinct quantiles of the confidences, `count` at most."""
    ranks = torch.linspace(0, len(confidence) - 1, count).long()
    return sorted(set(confidence.sort().values[ranks].tolist()))


def _cost(leaving: Sequence[float], costs: Sequence[float]) -> float:
    return sum(share * cost for share, cost in zip(leaving, costs, strict=True))


def parse_target(text: str) -> float:
    """Parse `accuracy=-0.2`, the accuracy minus the deepest head's, in percentage points; return it as a fraction.

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


def parse_thresholds(texts: Sequence[str], early: Sequence[str]) -> list[Thresholds]:
    """Parse the values of `--exit-thresholds` into thresholds by early head. Raises ConfigError with all problems."""
    settings, problems = [], []
    for text in texts:
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
        raise ValueError("expected probabilities above 0 and up to 1, separated by commas, as in 0.9,0.95")
    if len(values) not in (1, len(early)):
        raise ValueError(
            f"{len(values)} for {len(early)} early heads ({', '.join(early)}): give one per head, or one for all"
        )
    return values * len(early) if len(values) == 1 else values
