"""Cores, memory and GPUs that this process may use, read without torch."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.agent.cgroup import cpu_limit, memory_limit
from launcher.agent.torch_cuda_version import driver_problem

_NVIDIA_CONTROL = Path("/dev/nvidiactl")
_AMD_CONTROL = Path("/dev/kfd")
_NO_GPUS = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES by which users and schedulers hide all GPUs."""


@dataclass(frozen=True)
class Resources:
    """Cores and bytes of memory that this process may use, and visible GPUs as named in CUDA_VISIBLE_DEVICES.

    `gpu_memory`: bytes of the smallest GPU. 0 bytes: unknown. `core_numbers`: the kernel's core numbers, sorted; there
    are more than `cores` where a container has only a share of their time. `gpu_trouble`: why no GPU is visible on a
    machine that has or was granted GPUs, or why torch can't use the visible ones; empty if nothing is wrong.
    `amd_gpus`: the machine has AMD GPUs, which are not supported.
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
        """Return the resources of this process on this machine."""
        nvidia = query_driver()
        visible = _visible_gpus([gpu.uuid for gpu in nvidia.gpus], environment.get("CUDA_VISIBLE_DEVICES"))
        return cls(
            _usable_cores(),
            visible,
            _usable_memory(),
            gpu_memory=_min_known(_memory_of(name, nvidia.gpus) for name in visible),
            core_numbers=tuple(sorted(os.sched_getaffinity(0))),
            gpu_trouble=driver_problem(nvidia.version, nvidia.cuda) if visible else _why_no_gpu(nvidia, environment),
            amd_gpus=_AMD_CONTROL.exists(),
        )

    @classmethod
    def minimum(cls, machines: Sequence["Resources"]) -> "Resources":
        """Return the minimum of the resources of several machines; the GPUs are named by their numbers."""
        return cls(
            cores=min(machine.cores for machine in machines),
            gpus=tuple(map(str, range(min(len(machine.gpus) for machine in machines)))),
            memory=_min_known(machine.memory for machine in machines),
            gpu_memory=_min_known(machine.gpu_memory for machine in machines),
        )


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU. `memory`: total bytes; `free`: free bytes; 0: unknown."""

    uuid: str
    name: str
    memory: int = 0
    free: int = 0


@dataclass(frozen=True)
class GpuDriver:
    """The NVIDIA driver: its version and GPUs, or in `trouble` why it does not respond; empty: not installed."""

    version: str = ""
    trouble: str = ""
    gpus: tuple[Gpu, ...] = ()
    cuda: tuple[int, int] = (0, 0)
    """Newest CUDA version that the driver supports; (0, 0): unknown."""


def query_driver() -> GpuDriver:
    """Query the NVIDIA driver. GPUs are in the driver's order."""
    if not _NVIDIA_CONTROL.exists():
        return GpuDriver()
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuDriver(trouble=str(error))
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        gpus = tuple(_read_gpu(pynvml, handle) for handle in handles)
        return GpuDriver(str(pynvml.nvmlSystemGetDriverVersion()), gpus=gpus, cuda=_read_cuda_version(pynvml))
    except pynvml.NVMLError as error:  # a GPU is lost
        return GpuDriver(trouble=str(error))
    finally:
        pynvml.nvmlShutdown()


def _read_cuda_version(nvml: Any) -> tuple[int, int]:
    try:
        number = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    except nvml.NVMLError:
        return 0, 0
    return number // 1000, number % 1000 // 10


def _why_no_gpu(nvidia: GpuDriver, environment: Mapping[str, str]) -> str:
    """Return why none of the GPUs that are installed or were granted is visible."""
    chosen, granted = environment.get("CUDA_VISIBLE_DEVICES"), environment.get("SLURM_GPUS_ON_NODE", "0")
    value = "not set" if chosen is None else repr(chosen)
    if granted.isdecimal() and int(granted):
        driver_error = f"; NVIDIA's driver: {nvidia.trouble}" if nvidia.trouble else ""
        return f"Slurm granted {granted} GPUs, and none is visible (CUDA_VISIBLE_DEVICES is {value}{driver_error})"
    if chosen in _NO_GPUS:
        return ""
    if nvidia.trouble:
        return f"this machine has NVIDIA GPUs, and their driver does not respond: {nvidia.trouble}"
    return f"{len(nvidia.gpus)} GPUs are installed, and CUDA_VISIBLE_DEVICES is {value}" if nvidia.gpus else ""


def _read_gpu(nvml: Any, handle: Any) -> Gpu:
    uuid, name = str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:  # it has no memory of its own
        return Gpu(uuid, name)
    return Gpu(uuid, name, memory.total, memory.free)


def _memory_of(name: str, installed: Sequence[Gpu]) -> int:
    """Return the bytes of a visible GPU; 0 for a MIG instance, which has only a part of its GPU's memory."""
    if name.isdecimal():
        return installed[int(name)].memory
    return next((gpu.memory for gpu in installed if gpu.uuid.startswith(name)), 0)


def _min_known(sizes: Iterable[int]) -> int:
    return min(filter(None, sizes), default=0)


def format_core_list(numbers: Sequence[int]) -> str:
    """Format sorted core numbers as Linux does: `0-3,8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _usable_cores() -> int:
    """Return the number of cores in the affinity mask, or the cgroup's quota if it is smaller; at least 1."""
    affinity = len(os.sched_getaffinity(0))
    return max(1, round(min(affinity, cpu_limit() or affinity)))


def _usable_memory() -> int:
    """Return the machine's memory in bytes, or the limit of the control group if it is smaller."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(installed, memory_limit() or installed)


_GPU_PREFIX, _MIG_PREFIX = "GPU-", "MIG-"


def _visible_gpus(uuids: list[str], chosen: str | None) -> tuple[str, ...]:
    """Return the installed GPUs that CUDA_VISIBLE_DEVICES makes visible, by CUDA's rules.

    The list ends at the first name that matches no GPU; a duplicate hides all GPUs; at most one MIG instance is
    visible. See CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if chosen is None:
        return tuple(str(number) for number in range(len(uuids)))
    if uuids and chosen.strip().startswith(_MIG_PREFIX):
        return (chosen.split(",")[0].strip(),)
    visible = dict[str, int]()
    for name in map(str.strip, chosen.split(",")):
        if (number := _gpu_number(name, uuids)) is None:
            break
        if number in visible.values():
            return ()
        visible[name] = number
    return tuple(visible)


def _gpu_number(name: str, uuids: list[str]) -> int | None:
    """Return the number of the GPU that an entry of CUDA_VISIBLE_DEVICES names; None: no GPU.

    An entry is a number or a prefix of a UUID.
    """
    if name.isdecimal():
        return int(name) if int(name) < len(uuids) else None
    matches = [number for number, uuid in enumerate(uuids) if uuid.startswith(name)]
    return matches[0] if len(matches) == 1 and len(name) > len(_GPU_PREFIX) else None
