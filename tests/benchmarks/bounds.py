"""Regression bounds on speed and memory: ratios with generous limits; exits with 1 if one is violated.

python -m tests.benchmarks.bounds

Both sides of a ratio are measured in one round, with up to three rounds while a ratio is out of bounds, because other
work on the machine disturbs a single round.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from statistics import median

from fmfsd.data.prepare import prepare
from tests.benchmarks.table import print_table
from tests.benchmarks.train import SCRIPT, VARIANTS, TrainMeasurement, config, measure

ROUNDS = 3
FMFSD, PLAIN = "FMFSD, the preset: bf16, channels_last", "plain, the preset"
OPTIONS = argparse.Namespace(backbone="resnet18", batch=128, device="cpu", steps=3)


@dataclass(frozen=True)
class Bound:
    """A ratio of one value of two variants, with its lower or upper limit."""

    what: str
    variants: tuple[str, str]
    value: str
    least: float = 0.0
    most: float = float("inf")

    def ratio(self, measurements: dict[str, list[TrainMeasurement]]) -> float:
        one, other = (measurements[variant] for variant in self.variants)
        return median(getattr(a, self.value) / getattr(b, self.value) for a, b in zip(one, other, strict=True))

    def holds(self, measurements: dict[str, list[TrainMeasurement]]) -> bool:
        return self.least <= self.ratio(measurements) <= self.most


BOUNDS = (
    Bound("images/s, FMFSD to a script's", (FMFSD, SCRIPT), "images_per_s", least=1.3),
    Bound("images/s, the plain backbone to FMFSD", (PLAIN, FMFSD), "images_per_s", most=2.0),
    Bound("memory, FMFSD to the plain backbone", (FMFSD, PLAIN), "memory", most=1.35),
)


def main() -> int:
    measurements: dict[str, list[TrainMeasurement]] = {variant: [] for bound in BOUNDS for variant in bound.variants}
    with tempfile.TemporaryDirectory() as root:
        prepare(config(root, "resnet18", ()).data, source=None, fetch=False, report=lambda what, done, total: None)
        for _ in range(ROUNDS):
            for name, each in measurements.items():
                each.append(measure(VARIANTS[name], root, OPTIONS))
            if all(bound.holds(measurements) for bound in BOUNDS):
                break
    rows = [
        [bound.what, f"{bound.ratio(measurements):.2f}", _limits(bound), "yes" if bound.holds(measurements) else "NO"]
        for bound in BOUNDS
    ]
    print_table(["ratio", "value", "bounds", "holds"], rows)
    return 0 if all(bound.holds(measurements) for bound in BOUNDS) else 1


def _limits(bound: Bound) -> str:
    return f"at least {bound.least:g}" if bound.least else f"at most {bound.most:g}"


if __name__ == "__main__":
    sys.exit(main())
