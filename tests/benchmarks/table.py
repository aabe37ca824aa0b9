"""Markdown tables with the command, machine and versions that are needed to repeat a measurement."""

import os
import platform
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from launcher.agent.visible_gpus import query_driver

PACKAGES = ("torch", "torchvision", "numpy")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print the rows, and below them the command, machine and versions."""
    print_rows(header, rows)
    print(f"\n`{command_line()}` · {machine()} · {_versions()}")


def print_rows(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Format the median and the range."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def command_line() -> str:
    module = Path(sys.argv[0]).stem
    return shlex.join(["python", "-m", f"tests.benchmarks.{module}", *sys.argv[1:]])


def machine() -> str:
    """Return the CPU model, the number of cores, and the GPUs if there are any."""
    model = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.machine()
    )
    gpus = [f"{count} x {name}" for name, count in Counter(gpu.name for gpu in query_driver().gpus).items()]
    return ", ".join([model, f"{len(os.sched_getaffinity(0))} cores", *gpus, platform.system()])


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _versions() -> str:
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])
