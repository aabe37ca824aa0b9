"""The method's network and loss in NumPy, restated from their description alone: sections 1 and 2, on plain arrays.

Arrays may be complex, so that the derivative along a direction can be had by a complex step. What our code gives is the
names of the weights. Shapes: maps (B, C, H, W), masks (B, G, H, W), features (B, D), logits (B, K).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = Mapping[str, Array]

EPSILON = 1e-5


@dataclass(frozen=True)
class Found:
    """h_1 ... h_4, phi_1(f_1) and phi_2(f_2), and f_4."""

    logits: list[Array]
    features: list[Array]
    deepest_feature: Array


def network(weights: Weights, images: Array) -> Found:
    """K stages of basic blocks, branches after all but the last: section 1, line by line."""
    stages = count(weights, "backbone.stages")
    x = relu(norm(part(weights, "backbone.stem.1"), convolve(images, weights["backbone.stem.0.weight"])))
    aligned = []
    for number in range(stages - 1):
        x = sge(part(weights, f"gates.{number}"), stage(part(weights, f"backbone.stages.{number}"), x, number))
        aligned.append(way(part(weights, f"alignments.{number}"), x))
    u = fused(part(weights, "fusion"), aligned)
    deepest_map = stage(part(weights, f"backbone.stages.{stages - 1}"), u, stages - 1)
    q = sge(part(weights, "fused_branch.1"), way(part(weights, "fused_branch.0"), u))
    v = fused(part(weights, "deep_fusion"), [q, deepest_map])
    own = [pooled(branch(part(weights, f"branches.{number}"), aligned[number])) for number in range(stages - 2)]
    names = [*(f"heads.{number}" for number in range(stages - 2)), "fused_head", "deepest_head"]
    features = [*own, pooled(v), pooled(deepest_map)]
    logits = [linear(part(weights, f"{name}.classifier"), each) for name, each in zip(names, features, strict=True)]
    projected = [linear(part(weights, f"projections.{number}"), each) for number, each in enumerate(own)]
    return Found(logits, projected, features[-1])


def stage(weights: Weights, x: Array, number: int) -> Array:
    for index in range(count(weights, "")):
        x = block(part(weights, str(index)), x, stride=2 if number > 0 and index == 0 else 1)
    return x


def block(weights: Weights, x: Array, *, stride: int) -> Array:
    inner = relu(norm(part(weights, "bn1"), convolve(x, weights["conv1.weight"], stride=stride)))
    inner = norm(part(weights, "bn2"), convolve(inner, weights["conv2.weight"]))
    if "downsample.0.weight" in weights:
        x = norm(part(weights, "downsample.1"), convolve(x, weights["downsample.0.weight"], stride=stride))
    return relu(inner + x)


def way(weights: Weights, x: Array) -> Array:
    """SepConv after SepConv, an SGE between two; no layers leave the map as it is."""
    for index in range(count(weights, "")):
        layer = part(weights, str(index))
        x = sge(layer, x) if "gamma" in layer else separable(layer, x)
    return x


def branch(weights: Weights, x: Array) -> Array:
    """R_i = SGE SepConv SGE P_i."""
    return sge(part(weights, "2"), way(part(weights, "1"), sge(part(weights, "0"), x)))


def separable(weights: Weights, x: Array) -> Array:
    """dw 3x3 s2, pw, BN, ReLU, SGE, dw 3x3 s1, pw, BN, ReLU."""
    x = convolve(depthwise(x, weights["0.weight"], stride=2), weights["1.weight"])
    x = sge(part(weights, "4"), relu(norm(part(weights, "2"), x)))
    x = convolve(depthwise(x, weights["5.weight"]), weights["6.weight"])
    return relu(norm(part(weights, "7"), x))


def sge(weights: Weights, x: Array) -> Array:
    return spread(mask(weights, x), x) * x


def fused(weights: Weights, maps: Sequence[Array]) -> Array:
    """U = mean_i(Abar * P_i), Abar = mean_i A_i."""
    masks = [mask(part(weights, f"enhancements.{number}"), each) for number, each in enumerate(maps)]
    wide = spread(np.mean(masks, axis=0), maps[0])
    return np.mean([wide * each for each in maps], axis=0)


def mask(weights: Weights, x: Array) -> Array:
    """sigmoid(gamma c^ + beta), c_p = <g, x_p> over a group's channels, g its mean over the positions."""
    groups = len(weights["gamma"])
    grouped = x.reshape(len(x), groups, -1, *x.shape[2:])
    agreement = (grouped * grouped.mean((3, 4), keepdims=True)).sum(2)
    scores = weights["gamma"][:, None, None] * standardised(agreement) + weights["beta"][:, None, None]
    return 1 / (1 + np.exp(-scores))


def standardised(agreement: Array) -> Array:
    centred = agreement - agreement.mean((2, 3), keepdims=True)
    positions = agreement.shape[2] * agreement.shape[3]
    variance = (centred**2).sum((2, 3), keepdims=True) / (positions - 1)
    return centred / (np.sqrt(variance) + EPSILON)


def spread(masks: Array, x: Array) -> Array:
    """Each group's mask for all of its channels."""
    return np.repeat(masks, x.shape[1] // masks.shape[1], axis=1)


def loss(found: Found, labels: Array, *, teacher: Found, alpha: float, beta: float, temperature: float) -> Any:
    """Section 2; `teacher` has the values of the deepest head, which are not differentiated."""
    *students, deepest = found.logits
    total = cross_entropy(deepest, labels)
    for student in students:
        soft = soft_cross_entropy(student, teacher.logits[-1], temperature)
        total = total + (1 - alpha) * cross_entropy(student, labels) + alpha * soft
    for projected in found.features:
        total = total + beta * distance(projected, teacher.deepest_feature)
    return total


def cross_entropy(logits: Array, labels: Array) -> Any:
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()


def soft_cross_entropy(student: Array, teacher: Array, temperature: float) -> Any:
    target = np.exp(log_softmax(teacher / temperature))
    return -(target * log_softmax(student / temperature)).sum(1).mean()


def distance(feature: Array, teacher: Array) -> Any:
    """The Frobenius norm over the whole batch."""
    return np.sqrt(((feature - teacher) ** 2).sum())


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.real.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def convolve(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    """With so much padding that a stride of 1 keeps the size."""
    windows = windows_of(x, kernel.shape[-1], stride)
    batch, _, height, width = windows.shape[:4]
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * height * width, -1)
    return (rows @ kernel.reshape(len(kernel), -1).T).reshape(batch, height, width, -1).transpose(0, 3, 1, 2)


def depthwise(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    windows = windows_of(x, kernel.shape[-1], stride)
    return (windows * kernel[:, 0][:, None, None]).sum((4, 5))


def windows_of(x: Array, side: int, stride: int) -> Array:
    """(B, C, H', W', side, side)."""
    edge = side // 2
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    return np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))[:, :, ::stride, ::stride]


def norm(weights: Weights, x: Array) -> Array:
    """Batch norm by the batch's own statistics."""
    centred = x - x.mean((0, 2, 3), keepdims=True)
    variance = (centred**2).mean((0, 2, 3), keepdims=True)
    scale, shift = weights["weight"][:, None, None], weights["bias"][:, None, None]
    return scale * centred / np.sqrt(variance + EPSILON) + shift


def relu(x: Array) -> Array:
    return x * (x.real > 0)


def pooled(x: Array) -> Array:
    return x.mean((2, 3))


def linear(weights: Weights, x: Array) -> Array:
    return x @ weights["weight"].T + weights["bias"]


def part(weights: Weights, prefix: str) -> Weights:
    """Those under `prefix`, without it."""
    return {name.removeprefix(f"{prefix}."): each for name, each in weights.items() if name.startswith(f"{prefix}.")}


def count(weights: Weights, prefix: str) -> int:
    """How many numbered parts there are under `prefix`."""
    names = part(weights, prefix) if prefix else weights
    return len({name.partition(".")[0] for name in names})
