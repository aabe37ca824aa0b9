"""For which CUDA the installed torch was built, read from its files: importing it takes seconds."""

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_CUDA = re.compile(r"^cuda\b[^=\n]*= *(?:None|'(\d+)\.(\d+)')", re.MULTILINE)


def torch_cuda() -> tuple[int, int] | None:
    """Major and minor version, (0, 0) for a build without CUDA; None if torch is not here, or does not tell."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        found = _CUDA.search((Path(spec.origin).parent / "version.py").read_text("utf-8"))
    except OSError:
        return None
    return None if found is None else (int(found[1] or 0), int(found[2] or 0))


def trouble_with_driver(driver: str, cuda: tuple[int, int]) -> str:
    """Return why the installed torch can't use GPUs of this driver; empty if it can. `cuda`: the newest version that
    the driver supports, (0, 0) if unknown.

    Within a major version of CUDA an older driver will do: CUDA Compatibility, "Minor Version Compatibility".
    """
    built = torch_cuda()
    if built == (0, 0):
        return f"torch {_torch_version()} is a build without CUDA: install the one of PyPI"
    if built is not None and cuda > (0, 0) and cuda[0] < built[0]:
        theirs, ours = (".".join(map(str, each)) for each in (cuda, built))
        return (
            f"NVIDIA's driver {driver} supports CUDA {theirs}, and torch was built for CUDA {ours}: update the driver, "
            f"or install a torch that was built for CUDA {cuda[0]}"
        )
    return ""


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "(of an unknown version)"
