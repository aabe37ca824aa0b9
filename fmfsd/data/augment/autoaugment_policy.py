"""AutoAugment's CIFAR-10 policy: its operations with their magnitudes, and the random choice of operations.

Cubuk et al. 2019 (arXiv:1805.09501), appendix, policy found on reduced CIFAR-10. Magnitudes for the policy's ten levels
are those of torchvision.transforms.AutoAugment.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmfsd.data.sampling import to_integers

POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
"""Sub-policies of two steps: operation, its probability, its level (0 to 9; 0 where it has none)."""

KINDS = {
    "none": ("Nothing",),
    "geometric": ("ShearY", "TranslateX", "TranslateY", "Rotate"),
    "lookup": ("Brightness", "Posterize", "Solarize", "Invert"),
    "autocontrast": ("AutoContrast",),
    "equalize": ("Equalize",),
    "contrast": ("Contrast",),
    "color": ("Color",),
    "sharpness": ("Sharpness",),
}
"""Operations by their implementation in `AutoAugment`."""
_SIGNED = ("ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
STEPS = 2


class Operation(NamedTuple):
    """An operation at a level; `sign` is -1 for the opposite direction or effect, which some operations have."""

    name: str
    level: int
    sign: int


def _operations() -> tuple[Operation, ...]:
    """Return all operations of the policy, sorted by kind."""
    steps = {(name, level) for sub_policy in POLICY for name, _, level in sub_policy}
    unsorted = {
        Operation(name, level, sign) for name, level in steps for sign in ((-1, 1) if name in _SIGNED else (1,))
    }
    order = [name for names in KINDS.values() for name in names]
    return (Operation("Nothing", 0, 1), *sorted(unsorted, key=lambda each: (order.index(each.name), each)))


OPERATIONS = _operations()
FIRST_OF_KIND = {
    kind: next(n for n, each in enumerate(OPERATIONS) if each.name in names) for kind, names in KINDS.items()
}
"""Index of each kind's first operation; operations of one kind are consecutive."""


def draw_operations(bits: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """Draw each sample's operations: for each step, the indices into OPERATIONS, from one random value per sample."""
    sub_policies, signs = to_integers(bits, len(POLICY), field=0), to_integers(bits, 1 << STEPS, field=3)
    return [
        np.where(
            to_integers(bits, 1 << 16, field=1 + step) < _PROBABILITIES[sub_policies, step],
            _INDICES[sub_policies, step, (signs >> step) & 1],
            0,
        )
        for step in range(STEPS)
    ]


def _index(name: str, level: int, sign: int) -> int:
    return OPERATIONS.index(Operation(name, level, sign if name in _SIGNED else 1))


_PROBABILITIES = np.array([[round(probability * (1 << 16)) for _, probability, _ in steps] for steps in POLICY])
_INDICES = np.array([[[_index(name, level, sign) for sign in (-1, 1)] for name, _, level in s] for s in POLICY])
