"""CUDA version of the installed torch, read from its files: importing torch takes seconds."""

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_CUDA = re.compile(r"^cuda\b[^=\n]*= *(?:None|'(\d+)\.(\d+)')", re.MULTILINE)


def torch_cuda_version() -> tuple[int, int] | None:
    """Return the major and minor CUDA version of the installed torch.

    (0, 0): a build without CUDA. None: torch is not installed, or its files do not contain the version.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        match = _CUDA.search((Path(spec.origin).parent / "version.py").read_text("utf-8"))
    except OSError:
        return None
    return None if match is None else (int(match[1] or 0), int(match[2] or 0))


def driver_problem(driver: str, cuda: tuple[int, int]) -> str:
    """Return why the installed torch can't use GPUs of this driver; empty if it can.

    `cuda`: the newest version that the driver supports, (0, 0) if unknown. Within a major version of CUDA, an older
    driver works: CUDA Compatibility, "Minor Version Compatibility".
    """
    built = torch_cuda_version()
    if built == (0, 0):
        return f"torch {_torch_version()} is a build without CUDA: install torch from PyPI"
    if built is not None and cuda > (0, 0) and cuda[0] < built[0]:
        supported, required = (".".join(map(str, version_pair)) for version_pair in (cuda, built))
        return (
            f"NVIDIA's driver {driver} supports CUDA {supported}, and torch was built for CUDA {required}: "
            f"update the driver, or install a torch that was built for CUDA {cuda[0]}"
        )
    return ""


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "(unknown version)"
