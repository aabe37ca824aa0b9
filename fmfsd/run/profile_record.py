"""Results of profiling one worker, as values. The profiler itself needs torch (fmfsd.profiling)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.system.atomic_files import read_json

SETTLING_STEPS, WARM_UP_STEPS = 3, 1
"""Steps before the timed steps, and warm-up steps of the profiler before it records."""

FORWARD, BACKWARD = "forward", "backward"
TRUNK, BRANCHES, FUSION = "trunk", "branches", "fusion"
INPUT, LOSS, OPTIMIZER, COMMUNICATION, OTHER = "input", "loss", "optimizer", "communication", "other"
PARTS = (
    INPUT,
    *(f"{FORWARD}/{module}" for module in (TRUNK, BRANCHES, FUSION)),
    LOSS,
    *(f"{BACKWARD}/{module}" for module in (TRUNK, BRANCHES, FUSION, LOSS, OTHER)),
    OPTIMIZER,
    COMMUNICATION,
    OTHER,
)
"""Parts of a step; their times add up to the step time."""


def count_profile_steps(steps: int) -> int:
    """Return the total number of steps for a profile of `steps` steps, timed first without and then with profiler."""
    return SETTLING_STEPS + steps + WARM_UP_STEPS + steps


@dataclass(frozen=True)
class Operator:
    """An operator of torch in a part of a step: self time in seconds and number of calls, per step."""

    name: str
    part: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class StepBreakdown:
    """Time of a step of `step_s` seconds by part; `parts` add up to it.

    In `parts`, communication is the time that does not overlap with computation; `communication_s` is the total.
    `operators` are the slowest ones.
    """

    step_s: float
    parts: dict[str, float]
    communication_s: float
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class WorkerProfile:
    """Profile of one worker.

    `steps_s` are the seconds of each step with the run's config and without the profiler; `data_wait` is the fraction
    of this time spent waiting for data. `division` is measured with the profiler and without torch.compile.
    """

    rank: int
    steps_s: tuple[float, ...]
    data_wait: float
    peak_memory_bytes: int
    matrix_flops_per_s: float
    division: StepBreakdown

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> "WorkerProfile":
        """Return the profile in the file `path`. OSError or ValueError if it has none."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(read_json(path))
