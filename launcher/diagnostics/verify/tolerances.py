"""Differences between runs by different numbers of workers, and the bounds that are promised for them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table


@dataclass(frozen=True)
class Promise:
    """The largest relative differences that rounding explains, in the first `steps` steps or in all; None: no bound.

    Samples are always the same.
    """

    losses: float | None = None
    gradients: float | None = None
    weights: float | None = None
    steps: int | None = None

    def __str__(self) -> str:
        bounds = {"losses": self.losses, "gradients": self.gradients, "weights": self.weights}
        bounded = ", ".join(f"{name} to {most:g}" for name, most in bounds.items() if most is not None)
        if not bounded:
            return "only the same samples are promised; --set train.precision=fp64 shows more"
        later = f" in the first {self.steps} steps; after that rounding grows" if self.steps else ""
        return f"expected to agree: {bounded}{later}"


PROMISES = {
    "fp64": Promise(losses=1e-9, gradients=1e-9, weights=1e-9),
    "fp32": Promise(losses=1e-5, steps=2),
    "bf16": Promise(),
    "fp16": Promise(),
}
"""Bounds by precision.

With one worker, the fp32 losses of cifar100-resnet8 differ from the fp64 losses by 3e-6 in step 2, 9e-6 in step 3 and
2e-4 in step 4. Its gradients differ by 4e-3 in step 1, where a ReLU switches. All of that is rounding.
"""


@dataclass(frozen=True)
class Row:
    """One run compared with the first, by largest relative differences; `worst_parameter` has that of the gradients.

    `samples` counts samples that only one of the two used in a step. `beyond` names what exceeds its bound.
    """

    workers: int
    nodes: int
    losses: float
    gradients: float
    first_gradients: float
    worst_parameter: str
    worst_step: int
    samples: int
    weights: float
    beyond: tuple[str, ...]

    @classmethod
    def of(cls, workers: int, nodes: int, found: Mapping[str, Any], promise: Promise) -> "Row":
        """Read a comparison as `fmfsd compare` writes it."""
        losses, gradients = ([each["difference"] for each in found[name]] for name in ("losses", "gradients"))
        worst, weights, samples = gradients.index(max(gradients)), found["weights"]["difference"], found["samples"]
        bounded = {
            "losses": (max(losses[: promise.steps]), promise.losses),
            "gradients": (max(gradients[: promise.steps]), promise.gradients),
            "samples": (samples, 0),
            "weights": (weights, promise.weights),
        }
        return cls(
            workers=workers,
            nodes=nodes,
            losses=max(losses),
            gradients=gradients[worst],
            first_gradients=gradients[0],
            worst_parameter=found["gradients"][worst]["where"],
            worst_step=worst + 1,
            samples=samples,
            weights=weights,
            beyond=tuple(name for name, (value, most) in bounded.items() if most is not None and not value <= most),
        )

    @property
    def verdict(self) -> str:
        return f"NO: {', '.join(self.beyond)}" if self.beyond else "as promised"

    def describe_gradients(self) -> str:
        where = f"{self.gradients:.1e} at most, in {self.worst_parameter} in step {self.worst_step}"
        who = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{who}: gradients differ by {self.first_gradients:.1e} in step 1, by {where}"


def table(first: tuple[int, int], rows: Sequence[Row]) -> Table:
    """Return the table; `first` has the numbers of workers and nodes of the reference run."""
    rendered = Table("workers", "nodes", "losses", "gradients", "weights", "other samples", "", box=box.SIMPLE)
    rendered.add_row(*map(str, first), *(["-"] * 4), "reference")
    for row in rows:
        differences = (f"{value:.1e}" for value in (row.losses, row.gradients, row.weights))
        rendered.add_row(str(row.workers), str(row.nodes), *differences, str(row.samples), row.verdict)
    return rendered


def print_json(precision: str, rows: Sequence[Row]) -> None:
    runs = [{**asdict(row), "good": not row.beyond} for row in rows]
    print(json.dumps({"precision": precision, "promise": asdict(PROMISES[precision]), "against_the_first": runs}))
