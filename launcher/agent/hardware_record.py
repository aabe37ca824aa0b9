"""Hardware of this machine, recorded with every launch. Standard library only."""

import os
import platform
import socket
from pathlib import Path
from typing import Any

from launcher.agent.visible_gpus import query_driver

_CPUINFO = Path("/proc/cpuinfo")


def read_hardware() -> dict[str, Any]:
    """Return `cpu`: the model name; `cores`: installed; `gpus`: model names; `driver`: the NVIDIA driver's version or
    empty."""
    nvidia = query_driver()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpus": [gpu.name for gpu in nvidia.gpus],
        "driver": nvidia.version,
    }


def read_hardware_by_host() -> dict[str, Any]:
    """Return the hardware of this machine, keyed by its host name."""
    return {socket.gethostname(): read_hardware()}


def _cpu_model() -> str:
    """Return the CPU's name according to the kernel, or the architecture where the kernel gives no name (ARM)."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
