"""AutoAugment's CIFAR-10 policy: which operations there are, how strong each is, and which a sample gets.

Cubuk et al. 2019 (arXiv:1805.09501), appendix, policy found on reduced CIFAR-10. Strengths are those that
torchvision.transforms.AutoAugment gives the policy's levels, in ten steps.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmfsd.data.sampling import integers

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
    "nothing": ("Nothing",),
    "moved": ("ShearY", "TranslateX", "TranslateY", "Rotate"),
    "mapped": ("Brightness", "Posterize", "Solarize", "Invert"),
    "stretched": ("AutoContrast",),
    "equalised": ("Equalize",),
    "contrasted": ("Contrast",),
    "coloured": ("Color",),
    "sharpened": ("Sharpness",),
}
"""Operations by the way in which they are computed."""
_TWO_WAYS = ("ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
STEPS = 2


class Operation(NamedTuple):
    """`sign` is -1 for the weaker or the opposite of the two ways that some operations have."""

    name: str
    level: int
    sign: int


def _operations() -> tuple[Operation, ...]:
    """All that the policy has, kind by kind."""
    steps = {(name, level) for sub_policy in POLICY for name, _, level in sub_policy}
    found = {Operation(name, level, sign) for name, level in steps for sign in ((-1, 1) if name in _TWO_WAYS else (1,))}
    order = [name for names in KINDS.values() for name in names]
    return (Operation("Nothing", 0, 1), *sorted(found, key=lambda each: (order.index(each.name), each)))


OPERATIONS = _operations()
FIRST = {kind: next(n for n, each in enumerate(OPERATIONS) if each.name in names) for kind, names in KINDS.items()}
"""The number of each kind's first operation: those of one kind follow one another."""


def operations(words: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """For each step, the number in OPERATIONS of what each sample gets, from one random word a sample."""
    sub_policies, signs = integers(words, len(POLICY), field=0), integers(words, 1 << STEPS, field=3)
    return [
        np.where(
            integers(words, 1 << 16, field=1 + step) < _CHANCES[sub_policies, step],
            _NUMBERS[sub_policies, step, (signs >> step) & 1],
            0,
        )
        for step in range(STEPS)
    ]


def _number(name: str, level: int, sign: int) -> int:
    return OPERATIONS.index(Operation(name, level, sign if name in _TWO_WAYS else 1))


_CHANCES = np.array([[round(chance * (1 << 16)) for _, chance, _ in steps] for steps in POLICY])
_NUMBERS = np.array([[[_number(name, level, sign) for sign in (-1, 1)] for name, _, level in s] for s in POLICY])
