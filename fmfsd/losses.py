"""Losses between the branches of one network: tensors in, tensors out.

B batch, K classes, D channels of a feature, F branches with a feature loss. Sources: knowledge distillation, Hinton et
al. 2015 (arXiv:1503.02531); self-distillation, Zhang et al. 2019 (arXiv:1905.08094); FMFSD, Qin et al. 2025
(doi 10.3390/electronics14010182). Other teachers: the ensemble of exits (EED, arXiv:2104.00299), the fused head (FFL,
Kim et al. 2019, arXiv:1904.09058), each head of each (DKS, Sun et al. 2019, arXiv:1906.00675).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fmfsd.model.network import Outputs, average_logits
from fmfsd.model.spatial_enhancement import at_least_fp32


def soft_target_loss(student_BK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """Return the cross-entropy of the student with the teacher's softened, detached prediction; batch mean.

    Without the factor temperature**2 of Hinton et al. 2015: FMFSD has none.
    """
    target_BK = F.softmax(teacher_BK.detach() / temperature, dim=1)
    return F.cross_entropy(student_BK / temperature, target_BK)


Teachers = Sequence[Sequence[Tensor]]
"""For each head, the logits of its teachers."""


def use_deepest_as_teacher(logits_BK: Sequence[Tensor]) -> Teachers:
    """Return the deepest head as the teacher of all others; it has no teacher itself."""
    return [*([logits_BK[-1]] for _ in logits_BK[:-1]), []]


def use_ensemble_as_teacher(logits_BK: Sequence[Tensor]) -> Teachers:
    """Return the mean of all heads' logits as the teacher of every head."""
    return [[average_logits(logits_BK)] for _ in logits_BK]


def use_fused_as_teacher(logits_BK: Sequence[Tensor]) -> Teachers:
    """Return the fused head, the last but one, as the teacher of all others; it has no teacher itself."""
    *shallower, fused, _deepest = logits_BK
    return [*([fused] for _ in shallower), [], [fused]]


def use_all_others_as_teachers(logits_BK: Sequence[Tensor]) -> Teachers:
    """Return for each head all other heads as its teachers."""
    return [[*logits_BK[:number], *logits_BK[number + 1 :]] for number in range(len(logits_BK))]


TEACHERS: Mapping[str, Callable[[Sequence[Tensor]], Teachers]] = {
    "deepest": use_deepest_as_teacher,
    "ensemble": use_ensemble_as_teacher,
    "fused": use_fused_as_teacher,
    "all_pairs": use_all_others_as_teachers,
}


def squared_distances(features_BD: Sequence[Tensor], teacher_BD: Tensor) -> Tensor:
    """Return (F,): each branch's squared Frobenius distance to the detached teacher feature on this worker's batch."""
    target_BD = teacher_BD.detach()
    distances = [(feature - target_BD).square().sum() for feature in features_BD]
    return torch.stack(distances) if distances else target_BD.new_zeros(0)


def mean_squared_errors(features_BD: Sequence[Tensor], teacher_BD: Tensor) -> Tensor:
    """Return the sum of all branches' mean squared errors to the detached teacher feature (hints, Romero et al. 2015,
    arXiv:1412.6550)."""
    distances = [F.mse_loss(feature, teacher_BD.detach()) for feature in features_BD]
    return torch.stack(distances).sum() if distances else teacher_BD.new_zeros(())


def global_norm_surrogate(local_squares_F: Tensor, global_squares_F: Tensor, *, world_size: int) -> Tensor:
    """Return the sum of the norms over the global batch; averaged over workers, its gradient is that of this sum.

    The norm over the global batch is sqrt(S), S the sum of all workers' squares s: its gradient is ds / (2 sqrt(S)),
    and DDP's mean divides by the number of workers. A worker's own norm would give 1 / sqrt(world_size) of it.
    No gradient passes through `global_squares_F`; where it is 0 so is the result's gradient.
    """
    norms_F = global_squares_F.detach().sqrt()
    weights_F = torch.where(norms_F > 0, world_size / (2 * norms_F), 0.0)
    surrogate = (weights_F * local_squares_F).sum()
    return surrogate + (norms_F.sum() - surrogate).detach()


class LossTerms(NamedTuple):
    """Weighted loss terms of one worker.

    `label`, `soft_target` and `feature` (mean squared error) are means over its batch; `squares_F` are its squared
    distances for the feature norm, which must be summed over all workers.
    """

    label: Tensor
    soft_target: Tensor
    feature: Tensor
    squares_F: Tensor


@dataclass(frozen=True)
class SelfDistillLoss:
    """Self-distillation loss: label losses, soft-target losses from teachers, distances to the deepest feature."""

    alpha: float
    beta: float
    temperature: float
    label_weight: float = 1.0
    label_smoothing: float = 0.0
    teacher: str = "deepest"
    t_squared: bool = False
    feature: str = "batch_norm"

    def terms(self, outputs: Outputs, labels: Tensor) -> LossTerms:
        """Return the loss terms of one worker's batch; labels are class indices (B,) or probabilities (B, K).

        Logits and features are converted to fp32 at least. The loss of a head with teachers is 1 - alpha times its
        label loss plus alpha times the mean of its soft-target losses.
        """
        logits = [at_least_fp32(each) for each in outputs.logits]
        label, soft_target = logits[-1].new_zeros(()), logits[-1].new_zeros(())
        for number, (student_BK, teachers) in enumerate(zip(logits, self._teachers(logits), strict=True), 1):
            weight = 1.0 if number == len(logits) else self.label_weight
            alpha = self.alpha if teachers else 0.0
            label = label + weight * (1 - alpha) * self._label(student_BK, labels)
            for teacher_BK in teachers:
                soft_target = soft_target + alpha / len(teachers) * self._soft_target(student_BK, teacher_BK)
        return LossTerms(label, soft_target, *self._distances(outputs))

    def total(self, terms: LossTerms, global_squares_F: Tensor, *, world_size: int) -> Tensor:
        """Return the loss for backward; averaged over workers, value and gradient are those of the global batch."""
        norms = global_norm_surrogate(terms.squares_F, global_squares_F, world_size=world_size)
        return terms.label + terms.soft_target + terms.feature + self.beta * norms

    def _teachers(self, logits_BK: Sequence[Tensor]) -> Teachers:
        return TEACHERS[self.teacher](logits_BK) if len(logits_BK) > 1 else [[]]

    def _label(self, logits_BK: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits_BK, labels, label_smoothing=self.label_smoothing)

    def _soft_target(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        factor = self.temperature**2 if self.t_squared else 1.0
        return factor * soft_target_loss(student_BK, teacher_BK, temperature=self.temperature)

    def _distances(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Return the weighted mean squared error and the squared distances; `feature` selects which one is not zero."""
        features = [at_least_fp32(feature) for feature in outputs.features]
        deepest = at_least_fp32(outputs.deepest_feature)
        if self.feature == "mse":
            return self.beta * mean_squared_errors(features, deepest), deepest.new_zeros(0)
        return deepest.new_zeros(()), squared_distances(features, deepest)
