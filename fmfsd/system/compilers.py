"""What torch.compile needs on a machine, beside torch: a compiler, and the headers of Python for it."""

import shutil
import sysconfig
from pathlib import Path

COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("gcc", "clang")}
"""By device: one of these compiles Inductor's programs on CPUs, and what launches Triton's kernels on GPUs."""


def missing_for_compile(device: str) -> str:
    """Return what is missing on this machine and how to get it; empty if nothing is. `device`: cpu or cuda."""
    if not any(map(shutil.which, COMPILERS[device])):
        return f"there is no compiler: install {' or '.join(COMPILERS[device])}"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"{header} is missing: install Python's headers (python3-dev, python3-devel)"
    return ""
