"""The profiles of all workers of a run in one summary: step time, its parts, and the share of the measured limit."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fmfsd.config import RunConfig
from fmfsd.run.profile_record import PARTS, Operator, WorkerProfile
from fmfsd.run.run_dir import RunDir

PASSES = 3
"""Multiply-adds of a training step relative to its forward pass: the backward pass takes about twice as many."""


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum over the workers."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Compute:
    """Floating-point operations per second of all workers together, in training and in matrix products."""

    flops_per_s: float
    matrix_flops_per_s: float

    @property
    def share(self) -> float:
        return self.flops_per_s / self.matrix_flops_per_s


@dataclass(frozen=True)
class Summary:
    """Times in seconds. `step_s` and `worst_step_s` are of `steps` steps as configured; `parts` add up to
    `divided_step_s` on each worker, under the profiler. `compute` is None if the multiply-adds are unknown.
    """

    device: str
    precision: str
    batch: int
    steps: int
    workers: int
    step_s: float
    worst_step_s: float
    data_wait: float
    peak_memory_bytes: int
    compute: Compute | None
    divided_step_s: Spread
    parts: dict[str, Spread]
    communication_s: Spread
    operators: tuple[Operator, ...]

    @classmethod
    def of(cls, profiles: Sequence[WorkerProfile], config: RunConfig, device: str, macs: int) -> "Summary":
        """Summarise. `macs`: multiply-adds of the forward pass per image, 0 if unknown. Operators are rank 0's."""
        steps_s = [max(times) for times in zip(*(each.steps_s for each in profiles), strict=True)]
        step_s = statistics.median(steps_s)
        flops, limit = 2 * PASSES * macs * config.train.batch, sum(each.matrix_flops_per_s for each in profiles)
        return cls(
            device=device,
            precision=config.train.precision,
            batch=config.train.batch,
            steps=len(steps_s),
            workers=len(profiles),
            step_s=step_s,
            worst_step_s=max(steps_s),
            data_wait=max(each.data_wait for each in profiles),
            peak_memory_bytes=max(each.peak_memory_bytes for each in profiles),
            compute=Compute(flops / step_s, limit) if macs else None,
            divided_step_s=Spread.of([each.division.step_s for each in profiles]),
            parts={part: Spread.of([each.division.parts[part] for each in profiles]) for part in PARTS},
            communication_s=Spread.of([each.division.communication_s for each in profiles]),
            operators=profiles[0].division.operators,
        )

    @property
    def images_per_s(self) -> float:
        return self.batch / self.step_s

    def share(self, part: str) -> float:
        return self.parts[part].median / self.divided_step_s.median

    def to_json(self, run: RunDir) -> dict[str, Any]:
        compute = {**asdict(self.compute), "share": self.compute.share} if self.compute is not None else None
        traces = [str(run.profile_trace(rank)) for rank in range(self.workers)]
        return {**asdict(self), "images_per_s": self.images_per_s, "compute": compute, "traces": traces}
