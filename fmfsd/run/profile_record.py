"""What a profile says of one worker, as a value; what finds it out needs torch (fmfsd.profiling)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmfsd.system.atomic_files import read_json

SETTLING_STEPS, WARM_UP_STEPS = 3, 1
"""Before steps are timed, and of the profiler before it records."""

FORWARD, BACKWARD = "forward", "backward"
TRUNK, BRANCHES, FUSION = "trunk", "branches", "fusion"
INPUT, LOSS, OPTIMIZER, COMMUNICATION, OTHER = "input", "loss", "optimizer", "communication", "other"
PARTS = (
    INPUT,
    *(f"{FORWARD}/{which}" for which in (TRUNK, BRANCHES, FUSION)),
    LOSS,
    *(f"{BACKWARD}/{which}" for which in (TRUNK, BRANCHES, FUSION, LOSS, OTHER)),
    OPTIMIZER,
    COMMUNICATION,
    OTHER,
)
"""Of a step, which they add up to."""


def steps_to_profile(steps: int) -> int:
    """All that a run makes for a profile of so many: they are timed as they are, then as many are taken apart."""
    return SETTLING_STEPS + steps + WARM_UP_STEPS + steps


@dataclass(frozen=True)
class Operator:
    """What torch computes in a part of a step, without what it calls: seconds and calls a step."""

    name: str
    part: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class Division:
    """Where a step of `step_s` seconds goes; `parts` add up to it.

    In `parts` communication is what nothing was computed beside; `communication_s` is all of it. `operators` are the
    slowest.
    """

    step_s: float
    parts: dict[str, float]
    communication_s: float
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class WorkerProfile:
    """`steps_s` has the seconds of each step as the config has it, without the profiler, `data_wait` the share of them
    that was waiting for data; `division` is of steps with the profiler, uncompiled."""

    rank: int
    steps_s: tuple[float, ...]
    data_wait: float
    peak_memory_bytes: int
    matrix_flops_per_s: float
    division: Division

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> "WorkerProfile":
        """OSError or ValueError if `path` has none."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(read_json(path))
