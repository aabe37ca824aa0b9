"""NVIDIA GPUs of this machine, and which of them CUDA_VISIBLE_DEVICES makes visible. Read by NVML, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GPU_PREFIX, _MIG_PREFIX = "GPU-", "MIG-"
_NVIDIA_CONTROL = Path("/dev/nvidiactl")


_NO_GPUS = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES by which users and schedulers hide all GPUs."""


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


def explain_no_gpu(nvidia: GpuDriver, environment: Mapping[str, str]) -> str:
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


def list_visible_gpus(uuids: list[str], chosen: str | None) -> tuple[str, ...]:
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
