"""Findings about one machine, from the answer of its agent (`launcher.agent.describe_machine`)."""

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.agent.health import NAME_LOOKUP_TIMEOUT_S
from launcher.check.machine_checks import FREE_BYTES
from launcher.config.byte_sizes import format_size
from launcher.diagnostics.doctor.finding import Finding

FEWEST_OPEN_FILES = 1024
SHM_BYTES = 1 << 30
"""NCCL passes data between GPUs through /dev/shm; NCCL recommends this size, containers often have 64 MiB."""
_REQUIRED = {"this folder": FREE_BYTES, "temporary files": 64 << 20}
"""Required free bytes."""
SLOW_NAME_S = 1.0
UNLIMITED = -1

Answer = Mapping[str, Any]


def findings(machine: str, answer: Answer) -> Iterator[Finding]:
    """Yield all findings about one machine."""
    for assess in (_software, _gpus, _cores, _memory, _shm, _limits, _disks, _network):
        for what, found, wrong in assess({**answer, **answer["condition"]}):
            yield Finding(machine, what, found, wrong)


Rows = Iterator[tuple[str, str, str]]


def _software(answer: Answer) -> Rows:
    yield "Python", answer["python"], ""
    versions = answer["versions"]
    for name in ("fmfsd", "torch", "torchvision"):
        yield name, versions[name] or "not installed", "" if versions[name] else f"pip install {name}"
    for name, feature in {"deepspeed": "--engine deepspeed", "ray": "fmfsd-tune"}.items():
        yield name, versions[name] or f"not installed; only {feature} needs it", ""


def _gpus(answer: Answer) -> Rows:
    driver, visible = answer["driver"], len(answer["gpus"])
    if driver["trouble"]:
        yield (
            "NVIDIA driver",
            "does not answer",
            f"{driver['trouble']}: nvidia-smi reports the same; restart the machine",
        )
    elif driver["version"]:
        yield "NVIDIA driver", driver["version"], ""
    for number, gpu in enumerate(driver["gpus"]):
        yield f"GPU {number}", f"{gpu['name']}, {format_size(gpu['free'])} of {format_size(gpu['memory'])} free", ""
    hidden = len(driver["gpus"]) - visible
    note = f", CUDA_VISIBLE_DEVICES hides {hidden}" if hidden > 0 else ""
    yield "GPUs", f"{visible} visible{note}{'' if visible else '; workers compute on the CPU'}", _no_gpu(answer)
    if answer["amd_gpus"]:
        yield "AMD GPUs", "not supported", ""


def _no_gpu(answer: Answer) -> str:
    """Return what is wrong with the GPUs, unless the driver's row has it."""
    return "" if answer["driver"]["trouble"] else answer["gpu_trouble"]


def _cores(answer: Answer) -> Rows:
    yield "cores", f"{answer['cores']} of {answer['installed_cores']} are available", ""


def _memory(answer: Answer) -> Rows:
    yield "memory", f"{format_size(answer['memory'])} are available", ""


def _shm(answer: Answer) -> Rows:
    free, needed = answer["shm"], len(answer["gpus"]) > 1
    short = needed and (free is None or free < SHM_BYTES)
    advice = f"NCCL needs {format_size(SHM_BYTES)} between GPUs: docker run --shm-size=1g, or --env NCCL_SHM_DISABLE=1"
    yield "shared memory", f"{format_size(free)} free" if free is not None else "not available", advice if short else ""


def _limits(answer: Answer) -> Rows:
    files, locked = answer["open_files"], answer["locked_memory"]
    few = 0 <= files < FEWEST_OPEN_FILES
    yield "open files", _limit(files), f"ulimit -n {FEWEST_OPEN_FILES} or more" if few else ""
    locks_little = answer["infiniband"] and locked != UNLIMITED
    found = _limit(locked) if locked == UNLIMITED else format_size(locked)
    yield "locked memory", found, "InfiniBand needs it unlimited: ulimit -l unlimited" if locks_little else ""


def _limit(number: int) -> str:
    return "unlimited" if number == UNLIMITED else str(number)


def _disks(answer: Answer) -> Rows:
    for what, required in _REQUIRED.items():
        place, free = answer["disks"][what]
        short = (
            f"{format_size(required)} are required: free some space, or use another folder"
            if (free or 0) < required
            else ""
        )
        yield what, f"{place}: {format_size(free)} free" if free is not None else f"{place} does not exist", short


def _network(answer: Answer) -> Rows:
    trouble, name_s = answer["loopback"], answer["name_s"]
    remedy = f"{trouble}: ip link set lo up"
    yield "loopback", "does not work" if trouble else "works", remedy if trouble else ""
    found = f"resolved in {name_s:.2f} s" if name_s is not None else f"not resolved in {NAME_LOOKUP_TIMEOUT_S:g} s"
    slow = name_s is None or name_s > SLOW_NAME_S
    advice = f"every process waits for it when it starts: add `ADDRESS {answer['host']}` to /etc/hosts"
    yield f"host name {answer['host']}", found, advice if slow else ""
