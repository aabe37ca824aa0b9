"""What a machine has told of itself (`launcher.agent.probe`, with its condition), judged."""

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.agent.health import NAME_S
from launcher.check.machine_checks import FREE_BYTES
from launcher.config.byte_sizes import size
from launcher.diagnostics.doctor.finding import Finding

FEWEST_OPEN_FILES = 1024
SHM_BYTES = 1 << 30
"""NCCL passes data between GPUs through it; containers are often given 64 MiB (NCCL's own advice is this much)."""
_WANTED = {"this folder": FREE_BYTES, "temporary files": 64 << 20}
"""Bytes free."""
SLOW_NAME_S = 1.0
UNLIMITED = -1

Answer = Mapping[str, Any]


def findings(machine: str, answer: Answer) -> Iterator[Finding]:
    """Of one machine."""
    for judge in (_software, _gpus, _cores, _memory, _shm, _limits, _disks, _network):
        for what, found, wrong in judge({**answer, **answer["condition"]}):
            yield Finding(machine, what, found, wrong)


Told = Iterator[tuple[str, str, str]]


def _software(answer: Answer) -> Told:
    yield "Python", answer["python"], ""
    versions = answer["versions"]
    for name in ("fmfsd", "torch", "torchvision"):
        yield name, versions[name] or "not installed", "" if versions[name] else f"pip install {name}"
    for name, for_what in {"deepspeed": "--engine deepspeed", "ray": "fmfsd-tune"}.items():
        yield name, versions[name] or f"not installed; only {for_what} needs it", ""


def _gpus(answer: Answer) -> Told:
    driver, visible = answer["driver"], len(answer["gpus"])
    if driver["trouble"]:
        yield "NVIDIA driver", "does not answer", f"{driver['trouble']}: nvidia-smi shows the same; restart the machine"
    elif driver["version"]:
        yield "NVIDIA driver", driver["version"], ""
    for number, gpu in enumerate(driver["gpus"]):
        yield f"GPU {number}", f"{gpu['name']}, {size(gpu['free'])} of {size(gpu['memory'])} free", ""
    hidden = len(driver["gpus"]) - visible
    note = f", CUDA_VISIBLE_DEVICES hides {hidden}" if hidden > 0 else ""
    yield "GPUs", f"{visible} visible{note}{'' if visible else '; workers compute on the CPU'}", _no_gpu(answer)
    if answer["amd_gpus"]:
        yield "AMD GPUs", "not supported", ""


def _no_gpu(answer: Answer) -> str:
    """What is wrong, unless the driver's own line has it."""
    return "" if answer["driver"]["trouble"] else answer["gpu_trouble"]


def _cores(answer: Answer) -> Told:
    yield "cores", f"{answer['cores']} of {answer['installed_cores']} are for us", ""


def _memory(answer: Answer) -> Told:
    yield "memory", f"{size(answer['memory'])} are for us", ""


def _shm(answer: Answer) -> Told:
    free, needed = answer["shm"], len(answer["gpus"]) > 1
    short = needed and (free is None or free < SHM_BYTES)
    advice = f"NCCL wants {size(SHM_BYTES)} between GPUs: docker run --shm-size=1g, or NCCL_SHM_DISABLE=1 (--env)"
    yield "shared memory", f"{size(free)} free" if free is not None else "not there", advice if short else ""


def _limits(answer: Answer) -> Told:
    files, locked = answer["open_files"], answer["locked_memory"]
    few = 0 <= files < FEWEST_OPEN_FILES
    yield "open files", _limit(files), f"ulimit -n {FEWEST_OPEN_FILES} or more" if few else ""
    locks_little = answer["infiniband"] and locked != UNLIMITED
    found = _limit(locked) if locked == UNLIMITED else size(locked)
    yield "locked memory", found, "InfiniBand needs it unlimited: ulimit -l unlimited" if locks_little else ""


def _limit(number: int) -> str:
    return "unlimited" if number == UNLIMITED else str(number)


def _disks(answer: Answer) -> Told:
    for what, wanted in _WANTED.items():
        place, free = answer["disks"][what]
        short = f"{size(wanted)} are needed: free some, or choose another place" if (free or 0) < wanted else ""
        yield what, f"{place}: {size(free)} free" if free is not None else f"{place} is not there", short


def _network(answer: Answer) -> Told:
    trouble, name_s = answer["loopback"], answer["name_s"]
    mended = f"{trouble}: ip link set lo up"
    yield "loopback", "does not work" if trouble else "works", mended if trouble else ""
    found = f"found in {name_s:.2f} s" if name_s is not None else f"not found in {NAME_S:g} s"
    slow = name_s is None or name_s > SLOW_NAME_S
    advice = f"each process waits for that at its start: a line `ADDRESS {answer['host']}` in /etc/hosts helps"
    yield f"own name {answer['host']}", found, advice if slow else ""
