"""The hardware of this machine, recorded with every launch. The standard library only."""

import os
import platform
import socket
from pathlib import Path
from typing import Any

from launcher.agent.resources import driver

_CPUINFO = Path("/proc/cpuinfo")


def hardware() -> dict[str, Any]:
    """`cpu`: the model's name; `cores`: those installed; `gpus`: their names; `driver`: NVIDIA's version, or empty."""
    found = driver()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpus": [gpu.name for gpu in found.gpus],
        "driver": found.version,
    }


def hardware_here() -> dict[str, Any]:
    """That of this machine, by its name."""
    return {socket.gethostname(): hardware()}


def _cpu_model() -> str:
    """As the kernel names it; the architecture where it names none (ARM)."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
