"""What a split comes to: sums over samples that any number of workers can add up, and what follows from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fmfsd.distributed.collectives import Comms
from fmfsd.evaluation.attention_masks import Attention
from fmfsd.model.network import Outputs, ensemble
from fmfsd.model.prune import ENSEMBLE

BINS = 15
"""Of equal width in confidence, as in Guo et al. 2017 (arXiv:1706.04599)."""


@dataclass(frozen=True)
class Calibration:
    """How sure a head is and how often it is right, by bins of its largest class probability."""

    samples: list[int]
    confidence: list[float]
    """The mean in each bin; 0 where it is empty."""
    top1: list[float]
    error: float
    """Expected calibration error: the mean distance of confidence and accuracy, over samples."""


@dataclass(frozen=True)
class ClassAttention:
    """Means over the images of each class, by the names of `Attention`: grids[class][name][row][column]."""

    names: tuple[str, ...]
    grids: list[list[list[list[float]]]]


@dataclass(frozen=True)
class Evaluation:
    """Of `heads`, shallow to deep and, with more than one, `ensemble`. `metrics` has the names of a run's records."""

    heads: tuple[str, ...]
    metrics: dict[str, float]
    agreement: list[list[float]]
    """The share of samples of which two heads say the same."""
    calibration: dict[str, Calibration]
    confusion: list[list[int]]
    """Of the deepest head: samples by their class and the one that it says."""
    attention: ClassAttention | None

    @property
    def not_finite(self) -> list[str]:
        """What has NaN or infinite values: the loss, or heads whose outputs have."""
        loss = [] if math.isfinite(self.metrics["loss"]) else ["the loss"]
        return loss + [f"the output of {name}" for name, found in self.calibration.items() if math.isnan(found.error)]


class Tally:
    """Sums over the samples that `add` is given. All of them lie in one tensor, `sums`, for one all-reduce."""

    def __init__(self, head_names: Sequence[str], num_classes: int, device: torch.device) -> None:
        self.heads = (*head_names, ENSEMBLE) if len(head_names) > 1 else tuple(head_names)
        self._deepest, self._classes = len(head_names) - 1, num_classes
        heads, bins = len(self.heads), len(self.heads) * BINS
        self._sizes = (1, 1, heads * heads, bins, bins, bins, num_classes**2)
        self.sums = torch.zeros(sum(self._sizes), dtype=torch.float64, device=device)
        self._attention: Tensor | None = None
        self._names: tuple[str, ...] = ()

    def add(self, outputs: Outputs, labels: Tensor, attention: Attention | None = None) -> None:
        logits = [head.double() for head in outputs.logits]
        if len(logits) > 1:
            logits.append(ensemble(logits))
        sure = torch.stack([head.softmax(dim=1).amax(dim=1) for head in logits])
        said = torch.stack([head.argmax(dim=1) for head in logits])
        loss = F.cross_entropy(logits[self._deepest], labels, reduction="sum")
        agreement = (said.unsqueeze(0) == said.unsqueeze(1)).sum(dim=2)
        pairs = labels * self._classes + said[self._deepest]
        counted = [loss.new_tensor(len(labels)), loss, agreement, *_binned(sure, said == labels)]
        self.sums += torch.cat([each.double().flatten() for each in (*counted, _counts(pairs, self._classes**2))])
        if attention is not None:
            self._add_attention(attention, labels)

    def _add_attention(self, found: Attention, labels: Tensor) -> None:
        if self._attention is None:
            self._names = found.names
            self._attention = torch.zeros(
                (self._classes, *found.grids.shape[1:]), dtype=torch.float64, device=labels.device
            )
        self._attention.index_add_(0, labels, found.grids.double())

    def of_all(self, comms: Comms) -> Evaluation:
        """What all workers' sums come to."""
        parts = comms.sum_(self.sums).split(self._sizes)
        seen, loss = (part.item() for part in parts[:2])
        agreement, *binned, confusion = parts[2:]
        calibration = self._calibration([part.view(-1, BINS) for part in binned])
        right = binned[2].view(-1, BINS).sum(dim=1).tolist()
        shown = {f"{name}_top1": count / seen for name, count in zip(self.heads, right, strict=True)}
        shares = (agreement / seen).view(len(self.heads), -1)
        square = confusion.view(self._classes, self._classes)
        return Evaluation(
            heads=self.heads,
            metrics={**shown, **self._with_deepest(shares[self._deepest].tolist()), "loss": loss / seen},
            agreement=shares.tolist(),
            calibration=calibration,
            confusion=square.long().tolist(),
            attention=self._class_attention(comms, square.sum(dim=1)),
        )

    def _with_deepest(self, shares: list[float]) -> dict[str, float]:
        """How often each other head says what the deepest does; the ensemble is made of it."""
        others = self.heads[: self._deepest]
        return {f"{name}_agreement": share for name, share in zip(others, shares, strict=False)}

    def _calibration(self, binned: Sequence[Tensor]) -> dict[str, Calibration]:
        return {name: _calibration(*(part[number].cpu() for part in binned)) for number, name in enumerate(self.heads)}

    def _class_attention(self, comms: Comms, samples: Tensor) -> ClassAttention | None:
        """A worker without images does not know the shape."""
        mine = (self._names, list(self._attention.shape)) if self._attention is not None else None
        known = next((each for each in comms.gather(mine) if each is not None), None)
        if known is None:
            return None
        names, shape = known
        own = self._attention if self._attention is not None else self.sums.new_zeros(shape)
        means = comms.sum_(own) / samples.clamp(min=1).view(-1, 1, 1, 1)
        return ClassAttention(tuple(names), rounded(means))


def rounded(grids: Tensor) -> Any:
    """As nested lists. Masks begin all alike, and their means differ little: thousandths would make steps of them."""
    return [[[[round(x, 5) for x in row] for row in grid] for grid in of_one] for of_one in grids.tolist()]


def _binned(sure: Tensor, right: Tensor) -> list[Tensor]:
    """Samples, confidence and correct predictions by head and bin. A confidence that is NaN makes its bin NaN."""
    first = BINS * torch.arange(len(sure), device=sure.device).unsqueeze(1)
    places = first + (sure.nan_to_num() * BINS).long().clamp(max=BINS - 1)
    return [
        _counts(places.flatten(), len(sure) * BINS, each.flatten()) for each in (torch.ones_like(sure), sure, right)
    ]


def _counts(places: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    given = torch.ones_like(places) if weights is None else weights
    return torch.zeros(size, dtype=torch.float64, device=places.device).index_add_(0, places, given.double())


def _calibration(samples: Tensor, confidence: Tensor, right: Tensor) -> Calibration:
    filled = samples.clamp(min=1)
    error = (confidence - right).abs().sum() / samples.sum()
    return Calibration(
        [int(count) for count in samples.tolist()],
        [round(mean, 6) for mean in (confidence / filled).tolist()],
        [round(share, 6) for share in (right / filled).tolist()],
        round(error.item(), 6),
    )
