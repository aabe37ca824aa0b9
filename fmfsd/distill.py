"""Losses between the branches of one network: tensors in, tensors out.

B batch, K classes, D channels of a feature, F branches with a feature loss. Sources: knowledge distillation, Hinton et
al. 2015 (arXiv:1503.02531); self-distillation, Zhang et al. 2019 (arXiv:1905.08094); FMFSD, Qin et al. 2025
(doi 10.3390/electronics14010182).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fmfsd.model.network import Outputs


def soft_target_loss(student_BK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of the student to the teacher's softened, detached prediction; batch mean.

    Without the factor temperature**2 of Hinton et al. 2015: FMFSD has none.
    """
    target_BK = F.softmax(teacher_BK.detach() / temperature, dim=1)
    return F.cross_entropy(student_BK / temperature, target_BK)


def squared_distances(features_BD: Sequence[Tensor], teacher_BD: Tensor) -> Tensor:
    """(F,): each branch's squared Frobenius distance to the detached teacher feature, over this worker's batch."""
    target_BD = teacher_BD.detach()
    distances = [(feature - target_BD).square().sum() for feature in features_BD]
    return torch.stack(distances) if distances else target_BD.new_zeros(0)


def global_norm_surrogate(local_squares_F: Tensor, global_squares_F: Tensor, *, world_size: int) -> Tensor:
    """A scalar whose gradient, averaged over workers, is that of the sum of the norms over the global batch.

    The norm over the global batch is sqrt(S), S the sum of all workers' squares s: its gradient is ds / (2 sqrt(S)),
    and DDP's mean divides by the number of workers. A worker's own norm would give 1 / sqrt(world_size) of it.
    `global_squares_F` has no gradient; where it is 0 so is the result's gradient.
    """
    norms_F = global_squares_F.sqrt()
    weights_F = torch.where(norms_F > 0, world_size / (2 * norms_F), 0.0)
    return (weights_F * local_squares_F).sum()


@dataclass(frozen=True)
class LossTerms:
    """One worker's terms, weighted: means over its batch, and what the feature norm needs of the other workers."""

    label: Tensor
    soft_target: Tensor
    squares_F: Tensor


@dataclass(frozen=True)
class SelfDistillLoss:
    """Every head learns the labels; all but the deepest learn from the deepest, by prediction and by feature."""

    alpha: float
    beta: float
    temperature: float
    label_weight: float = 1.0
    label_smoothing: float = 0.0

    def terms(self, outputs: Outputs, labels_B: Tensor) -> LossTerms:
        """The terms of one worker's batch; logits and features are taken in fp32 at least."""
        *students, teacher_BK = [_at_least_fp32(logits) for logits in outputs.logits]
        label, soft_target = self._label(teacher_BK, labels_B), teacher_BK.new_zeros(())
        for student_BK in students:
            label = label + self.label_weight * (1 - self.alpha) * self._label(student_BK, labels_B)
            soft_target = soft_target + self.alpha * soft_target_loss(
                student_BK, teacher_BK, temperature=self.temperature
            )
        features = [_at_least_fp32(feature) for feature in outputs.features]
        return LossTerms(label, soft_target, squared_distances(features, _at_least_fp32(outputs.deepest_feature)))

    def total(self, terms: LossTerms, global_squares_F: Tensor, *, world_size: int) -> Tensor:
        """What a worker differentiates; averaged over workers, its gradient is the global batch's."""
        feature = global_norm_surrogate(terms.squares_F, global_squares_F, world_size=world_size)
        return terms.label + terms.soft_target + self.beta * feature

    def _label(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return F.cross_entropy(logits_BK, labels_B, label_smoothing=self.label_smoothing)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
