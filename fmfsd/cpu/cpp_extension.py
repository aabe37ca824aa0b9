"""Just-in-time compilation of this package's C++ files, cached per user.

Callers need a slower fallback for machines without a compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from fmfsd.system.atomic_files import NotPrivateError, flush_to_disk, read_private
from fmfsd.system.kernel_cache import COMPILER, kernel_folder

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
SOURCES = Path(__file__).parent

log = logging.getLogger(__name__)


@cache
def load_library(name: str, *definitions: str) -> ctypes.CDLL | None:
    """Compile `name`.cpp with `definitions` such as `T=float` and load it; return None where that fails."""
    try:
        return ctypes.CDLL(str(_build(name, definitions)))
    except NotPrivateError as error:
        log.warning("the C++ kernel %s.cpp is not used, and a slower fallback is: %s", name, error)
        return None
    except (OSError, subprocess.CalledProcessError) as error:
        log.info("the C++ kernel %s.cpp could not be compiled; using a slower fallback: %s", name, error)
        return None


def _build(name: str, definitions: tuple[str, ...]) -> Path:
    """Return the compiled library, from the cache if it is there. Raises NotPrivateError if others may write to it."""
    flags = (*FLAGS, *(f"-D{each}" for each in definitions))
    texts = [path.read_bytes() for path in (SOURCES / f"{name}.cpp", *sorted(SOURCES.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*texts, " ".join(flags).encode(), _processor()])).hexdigest()
    path = kernel_folder() / f"{key}.so"
    if not path.exists():
        _compile(SOURCES / f"{name}.cpp", flags, path)
    read_private(path)
    return path


def _compile(source: Path, flags: tuple[str, ...], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:  # other processes may be compiling it too
        whole = Path(scratch) / target.name
        subprocess.run([COMPILER, *flags, str(source), "-o", str(whole)], check=True, capture_output=True)
        whole.chmod(0o700)
        with whole.open("rb") as file:
            flush_to_disk(file.fileno())
        os.replace(whole, target)


def _processor() -> bytes:
    """Return what `-march=native` depends on: machines with different processors may share a home folder."""
    path = Path("/proc/cpuinfo")
    lines = path.read_bytes().split(b"\n\n")[0].splitlines() if path.exists() else [platform.processor().encode()]
    return b"\n".join(
        line for line in lines if line.startswith((b"model name", b"flags", b"Features")) or len(lines) == 1
    )
