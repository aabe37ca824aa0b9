"""Evaluation metrics: sums over samples, all-reduced over any number of workers, and the metrics computed from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fmfsd.distributed.collectives import Comms
from fmfsd.evaluation.attention_masks import AttentionMaps
from fmfsd.model.network import Outputs, average_logits
from fmfsd.model.prune import ENSEMBLE

BINS = 15
"""Number of confidence bins of equal width, as in Guo et al. 2017 (arXiv:1706.04599)."""


@dataclass(frozen=True)
class Calibration:
    """Reliability of a head: confidence (the largest class probability) and accuracy by bins of confidence."""

    samples: list[int]
    confidence: list[float]
    """Mean of each bin; 0 for an empty bin."""
    top1: list[float]
    error: float
    """Expected calibration error: the mean of |confidence - accuracy| over samples."""


@dataclass(frozen=True)
class ClassAttention:
    """Attention maps averaged by class: grids[class][name][row][column], with the names of `AttentionMaps`."""

    names: tuple[str, ...]
    grids: list[list[list[list[float]]]]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split.

    `heads`: shallow to deep, followed by `ensemble` if there is more than one. `metrics`: by the names used in
    metrics.jsonl.
    """

    heads: tuple[str, ...]
    metrics: dict[str, float]
    agreement: list[list[float]]
    """Fraction of the samples for which two heads predict the same class."""
    calibration: dict[str, Calibration]
    confusion: list[list[int]]
    """Confusion matrix of the deepest head: samples by true class and predicted class."""
    attention: ClassAttention | None

    @property
    def non_finite_values(self) -> list[str]:
        """Names of the values that are NaN or infinite: the loss, or the output of a head."""
        loss = [] if math.isfinite(self.metrics["loss"]) else ["the loss"]
        return loss + [f"the output of {name}" for name, head in self.calibration.items() if math.isnan(head.error)]


class EvaluationAccumulator:
    """Accumulates sums over samples. They are stored in one tensor, `sums`, so that one all-reduce is enough."""

    def __init__(self, head_names: Sequence[str], num_classes: int, device: torch.device) -> None:
        self.heads = (*head_names, ENSEMBLE) if len(head_names) > 1 else tuple(head_names)
        self._deepest, self._classes = len(head_names) - 1, num_classes
        heads, bins = len(self.heads), len(self.heads) * BINS
        self._sizes = (1, 1, heads * heads, bins, bins, bins, num_classes**2)
        self.sums = torch.zeros(sum(self._sizes), dtype=torch.float64, device=device)
        self._attention: Tensor | None = None
        self._names: tuple[str, ...] = ()

    def add(self, outputs: Outputs, labels: Tensor, attention: AttentionMaps | None = None) -> None:
        logits = [head.double() for head in outputs.logits]
        if len(logits) > 1:
            logits.append(average_logits(logits))
        confidence = torch.stack([head.softmax(dim=1).amax(dim=1) for head in logits])
        predicted = torch.stack([head.argmax(dim=1) for head in logits])
        loss = F.cross_entropy(logits[self._deepest], labels, reduction="sum")
        agreement = (predicted.unsqueeze(0) == predicted.unsqueeze(1)).sum(dim=2)
        pairs = labels * self._classes + predicted[self._deepest]
        parts = [loss.new_tensor(len(labels)), loss, agreement, *_binned(confidence, predicted == labels)]
        self.sums += torch.cat([each.double().flatten() for each in (*parts, _counts(pairs, self._classes**2))])
        if attention is not None:
            self._add_attention(attention, labels)

    def _add_attention(self, attention: AttentionMaps, labels: Tensor) -> None:
        if self._attention is None:
            self._names = attention.names
            self._attention = torch.zeros(
                (self._classes, *attention.grids.shape[1:]), dtype=torch.float64, device=labels.device
            )
        self._attention.index_add_(0, labels, attention.grids.double())

    def compute(self, comms: Comms) -> Evaluation:
        """All-reduce the sums and return the metrics of all workers' samples. Every worker must call it."""
        parts = comms.all_reduce_(self.sums).split(self._sizes)
        samples, loss = (part.item() for part in parts[:2])
        agreement, *binned, confusion = parts[2:]
        calibration = self._calibration([part.view(-1, BINS) for part in binned])
        correct = binned[2].view(-1, BINS).sum(dim=1).tolist()
        top1 = {f"{name}_top1": count / samples for name, count in zip(self.heads, correct, strict=True)}
        shares = (agreement / samples).view(len(self.heads), -1)
        matrix = confusion.view(self._classes, self._classes)
        return Evaluation(
            heads=self.heads,
            metrics={**top1, **self._agreement_metrics(shares[self._deepest].tolist()), "loss": loss / samples},
            agreement=shares.tolist(),
            calibration=calibration,
            confusion=matrix.long().tolist(),
            attention=self._class_attention(comms, matrix.sum(dim=1)),
        )

    def _agreement_metrics(self, shares: list[float]) -> dict[str, float]:
        """Return how often each other head agrees with the deepest, without the ensemble, which contains it."""
        others = self.heads[: self._deepest]
        return {f"{name}_agreement": share for name, share in zip(others, shares, strict=False)}

    def _calibration(self, binned: Sequence[Tensor]) -> dict[str, Calibration]:
        return {name: _calibration(*(part[number].cpu() for part in binned)) for number, name in enumerate(self.heads)}

    def _class_attention(self, comms: Comms, samples: Tensor) -> ClassAttention | None:
        """Average the attention maps by class. A worker without images gets names and shape from another worker."""
        local = (self._names, list(self._attention.shape)) if self._attention is not None else None
        shared = next((each for each in comms.all_gather_object(local) if each is not None), None)
        if shared is None:
            return None
        names, shape = shared
        sums = self._attention if self._attention is not None else self.sums.new_zeros(shape)
        means = comms.all_reduce_(sums) / samples.clamp(min=1).view(-1, 1, 1, 1)
        return ClassAttention(tuple(names), round_grids(means))


def round_grids(grids: Tensor) -> Any:
    """Return nested lists rounded to 5 digits: at the start of training mask values differ by less than 0.001."""
    return [[[[round(x, 5) for x in row] for row in grid] for grid in image] for image in grids.tolist()]


def _binned(confidence: Tensor, correct: Tensor) -> list[Tensor]:
    """Sum samples, confidence and correct predictions by head and bin. A NaN confidence makes its bin NaN."""
    first = BINS * torch.arange(len(confidence), device=confidence.device).unsqueeze(1)
    bins = first + (confidence.nan_to_num() * BINS).long().clamp(max=BINS - 1)
    values = (torch.ones_like(confidence), confidence, correct)
    return [_counts(bins.flatten(), len(confidence) * BINS, each.flatten()) for each in values]


def _counts(bins: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    values = torch.ones_like(bins) if weights is None else weights
    return torch.zeros(size, dtype=torch.float64, device=bins.device).index_add_(0, bins, values.double())


def _calibration(samples: Tensor, confidence: Tensor, correct: Tensor) -> Calibration:
    divisor = samples.clamp(min=1)
    error = (confidence - correct).abs().sum() / samples.sum()
    return Calibration(
        [int(count) for count in samples.tolist()],
        [round(mean, 6) for mean in (confidence / divisor).tolist()],
        [round(share, 6) for share in (correct / divisor).tolist()],
        round(error.item(), 6),
    )
