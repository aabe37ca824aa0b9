"""What this machine offers, read without torch."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.agent.cgroup import cpu_limit, memory_limit
from launcher.agent.torch_build import trouble_with_driver

_NVIDIA_CONTROL = Path("/dev/nvidiactl")
_AMD_CONTROL = Path("/dev/kfd")
_NO_GPUS = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES by which users and schedulers hide all GPUs."""


@dataclass(frozen=True)
class Resources:
    """How many cores and bytes of memory this process may use; visible GPUs, as CUDA_VISIBLE_DEVICES would name them.

    `gpu_memory`: bytes of the smallest of these. 0 bytes: unknown. `core_numbers` are the kernel's, in order; more than
    `cores` where a container has but a share of their time. `gpu_trouble`: why no GPU is visible on a machine that has
    some, or was granted some, or why torch can't use those that are; empty where nothing is wrong. `amd_gpus`: it has
    some, which are not supported.
    """

    cores: int
    gpus: tuple[str, ...] = ()
    memory: int = 0
    gpu_memory: int = 0
    core_numbers: tuple[int, ...] = ()
    gpu_trouble: str = ""
    amd_gpus: bool = False

    @classmethod
    def detect(cls, environment: Mapping[str, str]) -> "Resources":
        found = driver()
        visible = _visible([gpu.uuid for gpu in found.gpus], environment.get("CUDA_VISIBLE_DEVICES"))
        return cls(
            _cores(),
            visible,
            _memory(),
            gpu_memory=_least_known(_memory_of(name, found.gpus) for name in visible),
            core_numbers=tuple(sorted(os.sched_getaffinity(0))),
            gpu_trouble=trouble_with_driver(found.version, found.cuda) if visible else _gpu_trouble(found, environment),
            amd_gpus=_AMD_CONTROL.exists(),
        )

    @classmethod
    def least(cls, found: Sequence["Resources"]) -> "Resources":
        """What each of several machines has at least; its GPUs are named by their numbers."""
        return cls(
            cores=min(each.cores for each in found),
            gpus=tuple(map(str, range(min(len(each.gpus) for each in found)))),
            memory=_least_known(each.memory for each in found),
            gpu_memory=_least_known(each.gpu_memory for each in found),
        )


@dataclass(frozen=True)
class Gpu:
    """`memory`, and what is `free` of it, in bytes; 0: unknown."""

    uuid: str
    name: str
    memory: int = 0
    free: int = 0


@dataclass(frozen=True)
class Driver:
    """NVIDIA's: its version or why it does not answer, neither where there is none; the GPUs that it shows us."""

    version: str = ""
    trouble: str = ""
    gpus: tuple[Gpu, ...] = ()
    cuda: tuple[int, int] = (0, 0)
    """The newest version that it supports; (0, 0): unknown."""


def driver() -> Driver:
    """With the GPUs in its own order."""
    if not _NVIDIA_CONTROL.exists():
        return Driver()
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Driver(trouble=str(error))
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        gpus = tuple(_gpu(pynvml, each) for each in handles)
        return Driver(str(pynvml.nvmlSystemGetDriverVersion()), gpus=gpus, cuda=_cuda_of_driver(pynvml))
    except pynvml.NVMLError as error:  # one of them is lost
        return Driver(trouble=str(error))
    finally:
        pynvml.nvmlShutdown()


def _cuda_of_driver(nvml: Any) -> tuple[int, int]:
    try:
        number = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    except nvml.NVMLError:
        return 0, 0
    return number // 1000, number % 1000 // 10


def _gpu_trouble(found: Driver, environment: Mapping[str, str]) -> str:
    """Why none of the GPUs that are installed or were granted is visible."""
    chosen, granted = environment.get("CUDA_VISIBLE_DEVICES"), environment.get("SLURM_GPUS_ON_NODE", "0")
    value = "not set" if chosen is None else repr(chosen)
    if granted.isdecimal() and int(granted):
        driver_says = f"; NVIDIA's driver: {found.trouble}" if found.trouble else ""
        return f"Slurm granted {granted} GPUs, and none is visible (CUDA_VISIBLE_DEVICES is {value}{driver_says})"
    if chosen in _NO_GPUS:
        return ""
    if found.trouble:
        return f"this machine has NVIDIA GPUs, and their driver does not respond: {found.trouble}"
    return f"{len(found.gpus)} GPUs are installed, and CUDA_VISIBLE_DEVICES is {value}" if found.gpus else ""


def _gpu(nvml: Any, handle: Any) -> Gpu:
    uuid, name = str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:  # it has none of its own
        return Gpu(uuid, name)
    return Gpu(uuid, name, memory.total, memory.free)


def _memory_of(name: str, installed: Sequence[Gpu]) -> int:
    """Of a GPU by its visible name; 0 for a part of one, whose size is not its whole's."""
    if name.isdecimal():
        return installed[int(name)].memory
    return next((gpu.memory for gpu in installed if gpu.uuid.startswith(name)), 0)


def _least_known(sizes: Iterable[int]) -> int:
    return min(filter(None, sizes), default=0)


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
    """The affinity mask's cores, or fewer where the quota of a control group says so; at least one."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, round(min(allowed, cpu_limit() or allowed)))


def _memory() -> int:
    """The machine's, or less where a control group says so."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(installed, memory_limit() or installed)


_WHOLE, _PART = "GPU-", "MIG-"


def _visible(uuids: list[str], chosen: str | None) -> tuple[str, ...]:
    """Those of the installed GPUs that CUDA_VISIBLE_DEVICES lets through, as CUDA reads it: up to the first name that
    names none, no GPU at all if one stands there twice, and one part of a GPU (MIG) at most.

    CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if chosen is None:
        return tuple(str(number) for number in range(len(uuids)))
    if uuids and chosen.strip().startswith(_PART):
        return (chosen.split(",")[0].strip(),)
    visible = dict[str, int]()
    for name in map(str.strip, chosen.split(",")):
        if (number := _number(name, uuids)) is None:
            break
        if number in visible.values():
            return ()
        visible[name] = number
    return tuple(visible)


def _number(name: str, uuids: list[str]) -> int | None:
    """Of the GPU that a part of CUDA_VISIBLE_DEVICES names: its number, or the begin of one GPU's UUID."""
    if name.isdecimal():
        return int(name) if int(name) < len(uuids) else None
    found = [number for number, uuid in enumerate(uuids) if uuid.startswith(name)]
    return found[0] if len(found) == 1 and len(name) > len(_WHOLE) else None
