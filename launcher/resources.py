"""What this machine offers, read without torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NVIDIA_CONTROL = Path("/dev/nvidiactl")
_CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Resources:
    """How many cores this process may use, and the visible GPUs as CUDA_VISIBLE_DEVICES would name them.

    `core_numbers` are the kernel's, in order; more than `cores` where a container has but a share of their time.
    """

    cores: int
    gpus: tuple[str, ...] = ()
    core_numbers: tuple[int, ...] = ()

    @classmethod
    def detect(cls, environment: Mapping[str, str]) -> "Resources":
        gpus = _visible(_installed_gpus(), environment.get("CUDA_VISIBLE_DEVICES"))
        return cls(cores=_cores(), gpus=gpus, core_numbers=tuple(sorted(os.sched_getaffinity(0))))


def core_list(numbers: Sequence[int]) -> str:
    """As Linux writes it: `0-3,8`. The numbers are in order."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _cores() -> int:
    """The affinity mask's cores, or fewer where a container's quota says so."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU_LIMIT.read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def _installed_gpus() -> list[str]:
    """The UUID of each GPU that the driver shows to this process, in the driver's order."""
    if not _NVIDIA_CONTROL.exists():
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        count = pynvml.nvmlDeviceGetCount()
        return [str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(number))) for number in range(count)]
    finally:
        pynvml.nvmlShutdown()


def _visible(uuids: list[str], chosen: str | None) -> tuple[str, ...]:
    """Those of the installed GPUs that CUDA_VISIBLE_DEVICES lets through: as CUDA does, up to the first unknown."""
    if chosen is None:
        return tuple(str(number) for number in range(len(uuids)))
    visible: list[str] = []
    for name in chosen.split(","):
        name = name.strip()
        by_number = name in map(str, range(len(uuids)))
        by_uuid = name and any(uuid.startswith(name) for uuid in uuids)
        part_of_one = name.startswith("MIG-") and uuids
        if not (by_number or by_uuid or part_of_one):
            break
        visible.append(name)
    return tuple(visible)
