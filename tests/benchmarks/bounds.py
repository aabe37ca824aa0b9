"""Whether speed and memory are where they were, by ratios with generous bounds; exits with 1 if one is not.

python -m tests.benchmarks.bounds

Measured side by side, and again, up to three rounds, where a ratio is out of its bounds: a busy machine is no news.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from statistics import median

from fmfsd.data.prepare import prepare
from tests.benchmarks.table import print_table
from tests.benchmarks.train import SCRIPT, WAYS, Measured, config, measured

ROUNDS = 3
FMFSD, PLAIN = "FMFSD, the preset: bf16, channels_last", "plain, the preset"
ASKED = argparse.Namespace(backbone="resnet18", batch=128, device="cpu", steps=3)


@dataclass(frozen=True)
class Bound:
    """A ratio of two ways' values, and what it may be at the least or at the most."""

    what: str
    ways: tuple[str, str]
    value: str
    least: float = 0.0
    most: float = float("inf")

    def ratio(self, found: dict[str, list[Measured]]) -> float:
        one, other = (found[way] for way in self.ways)
        return median(getattr(a, self.value) / getattr(b, self.value) for a, b in zip(one, other, strict=True))

    def holds(self, found: dict[str, list[Measured]]) -> bool:
        return self.least <= self.ratio(found) <= self.most


BOUNDS = (
    Bound("images/s, FMFSD to a script's", (FMFSD, SCRIPT), "images_per_s", least=1.3),
    Bound("images/s, the plain backbone to FMFSD", (PLAIN, FMFSD), "images_per_s", most=2.0),
    Bound("memory, FMFSD to the plain backbone", (FMFSD, PLAIN), "memory", most=1.35),
)


def main() -> int:
    found: dict[str, list[Measured]] = {way: [] for bound in BOUNDS for way in bound.ways}
    with tempfile.TemporaryDirectory() as root:
        prepare(config(root, "resnet18", ()).data, source=None, fetch=False, report=lambda what, done, total: None)
        for _ in range(ROUNDS):
            for name, each in found.items():
                each.append(measured(WAYS[name], root, ASKED))
            if all(bound.holds(found) for bound in BOUNDS):
                break
    rows = [
        [bound.what, f"{bound.ratio(found):.2f}", _limits(bound), "yes" if bound.holds(found) else "NO"]
        for bound in BOUNDS
    ]
    print_table(["ratio", "found", "bounds", "holds"], rows)
    return 0 if all(bound.holds(found) for bound in BOUNDS) else 1


def _limits(bound: Bound) -> str:
    return f"at least {bound.least:g}" if bound.least else f"at most {bound.most:g}"


if __name__ == "__main__":
    sys.exit(main())
