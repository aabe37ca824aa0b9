"""Requirements of torch.compile besides torch: a compiler and Python's headers."""

import shutil
import sysconfig
from pathlib import Path

COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("gcc", "clang")}
"""Suitable compilers by device: Inductor compiles C++ programs on CPUs, Triton its kernel launchers on GPUs."""


def find_missing_compiler(device: str) -> str:
    """Return what is missing on this machine and how to get it; empty if nothing is. `device`: cpu or cuda."""
    if not any(map(shutil.which, COMPILERS[device])):
        return f"no compiler found: install {' or '.join(COMPILERS[device])}"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"{header} is missing: install Python's headers (python3-dev, python3-devel)"
    return ""
