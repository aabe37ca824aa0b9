"""Cores, memory and GPUs that this process may use, read without torch."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.agent.cgroup import cpu_limit, memory_limit
from launcher.agent.torch_cuda_version import driver_problem
from launcher.agent.visible_gpus import Gpu, explain_no_gpu, list_visible_gpus, query_driver

_AMD_CONTROL = Path("/dev/kfd")


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
        visible = list_visible_gpus([gpu.uuid for gpu in nvidia.gpus], environment.get("CUDA_VISIBLE_DEVICES"))
        return cls(
            _usable_cores(),
            visible,
            _usable_memory(),
            gpu_memory=_min_known(_memory_of(name, nvidia.gpus) for name in visible),
            core_numbers=tuple(sorted(os.sched_getaffinity(0))),
            gpu_trouble=driver_problem(nvidia.version, nvidia.cuda) if visible else explain_no_gpu(nvidia, environment),
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
