"""Reference implementation of the method's network and loss: torch functions on a dictionary of weights.

Written from sections 1 and 2 of the method alone: ResNets of K stages, branches after all stages but the last, `fusion:
trunk`. Only the names of the weights come from our code. Batch normalisation uses the statistics of the batch.
Shapes: maps (B, C, H, W), masks (B, G, H, W), features (B, D), logits (B, K).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]

EPSILON = 1e-5


@dataclass(frozen=True)
class ReferenceOutputs:
    """All outputs of one forward pass."""

    logits: list[Tensor]
    """h_1 ... h_K: the branches' heads, the fused head, the deepest head."""
    features: list[Tensor]
    """phi_i(f_i) of the branches."""
    deepest_feature: Tensor
    """f_K."""


def network(weights: Weights, images: Tensor) -> ReferenceOutputs:
    """Return the outputs of the whole training graph."""
    num_taps = count(weights, "gates.")
    enhanced = enhanced_maps(weights, images)
    aligned = [align(weights_below(weights, f"alignments.{i}"), enhanced[i]) for i in range(num_taps - 1)] + enhanced[
        -1:
    ]
    fused = fuse(weights_below(weights, "fusion"), aligned)
    deepest_map = stage(weights, fused, num_taps)
    deepest_feature = pool(deepest_map)
    branch_features = [pool(branch(weights_below(weights, f"branches.{i}"), aligned[i])) for i in range(num_taps - 1)]
    candidate = fused_branch(weights_below(weights, "fused_branch"), fused)
    fused_feature = pool(fuse(weights_below(weights, "deep_fusion"), [candidate, deepest_map]))
    logits = [linear(weights_below(weights, f"heads.{i}.classifier"), f) for i, f in enumerate(branch_features)]
    logits.append(linear(weights_below(weights, "fused_head.classifier"), fused_feature))
    logits.append(linear(weights_below(weights, "deepest_head.classifier"), deepest_feature))
    features = [linear(weights_below(weights, f"projections.{i}"), f) for i, f in enumerate(branch_features)]
    return ReferenceOutputs(logits, features, deepest_feature)


def enhanced_maps(weights: Weights, images: Tensor) -> list[Tensor]:
    """Return E_k = SGE_k(F_k) for every stage but the last; F_k itself is the input of stage k + 1."""
    x, enhanced = stem(weights, images), []
    for k in range(count(weights, "gates.")):
        x = stage(weights, x, k)
        enhanced.append(sge(weights_below(weights, f"gates.{k}"), x))
    return enhanced


def stem(weights: Weights, images: Tensor) -> Tensor:
    """Apply the CIFAR stem: 3x3 with stride 1, no max-pooling."""
    return F.relu(
        batch_norm(weights_below(weights, "backbone.stem.1"), conv(images, weights["backbone.stem.0.weight"]))
    )


def stage(weights: Weights, x: Tensor, number: int) -> Tensor:
    """Apply one stage of residual blocks; each stage but the first halves the resolution in its first block."""
    blocks = weights_below(weights, f"backbone.stages.{number}")
    for i in range(count(blocks, "")):
        x = residual_block(weights_below(blocks, str(i)), x, stride=2 if number > 0 and i == 0 else 1)
    return x


def residual_block(weights: Weights, x: Tensor, *, stride: int) -> Tensor:
    """Apply a basic (3x3, 3x3) or a bottleneck block (1x1, 3x3, 1x1); the first 3x3 convolution has the stride."""
    last = count_names(weights, "conv")
    strided = 2 if last == 3 else 1
    y = x
    for i in range(1, last + 1):
        y = conv(y, weights[f"conv{i}.weight"], stride=stride if i == strided else 1)
        y = batch_norm(weights_below(weights, f"bn{i}"), y)
        y = F.relu(y) if i < last else y
    if "downsample.0.weight" in weights:
        x = batch_norm(weights_below(weights, "downsample.1"), conv(x, weights["downsample.0.weight"], stride=stride))
    return F.relu(y + x)


def align(weights: Weights, x: Tensor) -> Tensor:
    """Apply SepConv SGE SepConv ...: one SepConv for each stage boundary, an SGE between two of them."""
    for i in range(count(weights, "")):
        layer = weights_below(weights, str(i))
        x = sge(layer, x) if "gamma" in layer else sep_conv(layer, x)
    return x


def branch(weights: Weights, x: Tensor) -> Tensor:
    """Return R_i = SGE SepConv SGE P_i."""
    x = sge(weights_below(weights, "0"), x)
    x = sep_conv(weights_below(weights, "1.0"), x)
    return sge(weights_below(weights, "2"), x)


def fused_branch(weights: Weights, fused: Tensor) -> Tensor:
    """Return Q = SGE SepConv U."""
    return sge(weights_below(weights, "1"), sep_conv(weights_below(weights, "0.0"), fused))


def sep_conv(weights: Weights, x: Tensor) -> Tensor:
    """Apply dw 3x3 s2, pw ci->ci, BN, ReLU, SGE, dw 3x3 s1, pw ci->co, BN, ReLU."""
    x = conv(x, weights["0.weight"], stride=2, groups=x.shape[1])
    x = F.relu(batch_norm(weights_below(weights, "2"), conv(x, weights["1.weight"])))
    x = sge(weights_below(weights, "4"), x)
    x = conv(x, weights["5.weight"], groups=x.shape[1])
    return F.relu(batch_norm(weights_below(weights, "7"), conv(x, weights["6.weight"])))


def sge(weights: Weights, x: Tensor) -> Tensor:
    return repeat_over_groups(mask(weights, x), x) * x


def fuse(weights: Weights, maps: Sequence[Tensor]) -> Tensor:
    """Return U = mean_i(Abar * P_i) with Abar = mean_i sem_i(P_i)."""
    masks = [mask(weights_below(weights, f"enhancements.{i}"), each) for i, each in enumerate(maps)]
    average = torch.stack(masks).mean(0)
    intermediate = [repeat_over_groups(average, each) * each for each in maps]
    return torch.stack(intermediate).mean(0)


def mask(weights: Weights, x: Tensor) -> Tensor:
    """Return sigmoid(gamma c^ + beta) for every group and position."""
    gamma, beta = weights["gamma"].flatten(), weights["beta"].flatten()
    grouped = x.unflatten(1, (len(gamma), -1))
    mean = grouped.mean((3, 4), keepdim=True)
    agreement = (mean * grouped).sum(2)
    return torch.sigmoid(gamma[:, None, None] * standardise(agreement) + beta[:, None, None])


def standardise(agreement: Tensor) -> Tensor:
    """Return (c - mean c) / (std c + 1e-5) over the positions, with the unbiased std."""
    centred = agreement - agreement.mean((2, 3), keepdim=True)
    return centred / (agreement.std((2, 3), unbiased=True, keepdim=True) + EPSILON)


def repeat_over_groups(masks: Tensor, x: Tensor) -> Tensor:
    """Repeat each group's mask for all channels of the group."""
    return masks.repeat_interleave(x.shape[1] // masks.shape[1], dim=1)


def loss(outputs: ReferenceOutputs, labels: Tensor, *, alpha: float, beta: float, temperature: float) -> Tensor:
    """Return L; the teacher's logits and feature are detached in the terms of its students."""
    *students, teacher = outputs.logits
    total = F.cross_entropy(teacher, labels)
    for student in students:
        soft = soft_cross_entropy(student, teacher.detach(), temperature)
        total = total + (1 - alpha) * F.cross_entropy(student, labels) + alpha * soft
    for feature in outputs.features:
        total = total + beta * distance(feature, outputs.deepest_feature.detach())
    return total


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return SCE_T: batch mean, without the factor T^2."""
    log_student = F.log_softmax(student / temperature, dim=1)
    return -(F.softmax(teacher / temperature, dim=1) * log_student).sum(1).mean()


def distance(feature: Tensor, teacher: Tensor) -> Tensor:
    """Return the Frobenius norm over the whole batch."""
    return ((feature - teacher) ** 2).sum().sqrt()


def conv(x: Tensor, kernel: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)


def batch_norm(weights: Weights, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weights["weight"], weights["bias"], training=True, eps=EPSILON)


def pool(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def linear(weights: Weights, x: Tensor) -> Tensor:
    return x @ weights["weight"].T + weights["bias"]


def weights_below(weights: Weights, prefix: str) -> Weights:
    """Return the weights below `prefix`, without it."""
    return {name[len(prefix) + 1 :]: each for name, each in weights.items() if name.startswith(prefix + ".")}


def count(weights: Weights, prefix: str) -> int:
    """Return the number of different names that follow `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


def count_names(weights: Weights, start: str) -> int:
    """Return the number of different first names that start with `start`."""
    return len({name.split(".")[0] for name in weights if name.startswith(start)})
