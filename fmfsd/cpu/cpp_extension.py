"""Our own C++ for CPUs, compiled at its first use by the machine's compiler and kept in the user's cache.

Where there is no compiler, whoever asks for it has another way that takes longer.
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
def library(name: str, *definitions: str) -> ctypes.CDLL | None:
    """`name`.cpp, with `definitions` as `T=float`; None where it can't be compiled."""
    try:
        return ctypes.CDLL(str(_compiled(name, definitions)))
    except NotPrivateError as error:
        log.warning("%s.cpp is not used, so what it is for takes longer: %s", name, error)
        return None
    except (OSError, subprocess.CalledProcessError) as error:
        log.info("%s.cpp could not be compiled, so what it is for takes longer: %s", name, error)
        return None


def _compiled(name: str, definitions: tuple[str, ...]) -> Path:
    """The library's file, from the cache if it is there and nobody else may have written it."""
    flags = (*FLAGS, *(f"-D{each}" for each in definitions))
    texts = [path.read_bytes() for path in (SOURCES / f"{name}.cpp", *sorted(SOURCES.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*texts, " ".join(flags).encode(), _processor()])).hexdigest()
    made = kernel_folder() / f"{key}.so"
    if not made.exists():
        _compile(SOURCES / f"{name}.cpp", flags, made)
    read_private(made)
    return made


def _compile(source: Path, flags: tuple[str, ...], made: Path) -> None:
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:  # others may be compiling it too
        whole = Path(scratch) / made.name
        subprocess.run([COMPILER, *flags, str(source), "-o", str(whole)], check=True, capture_output=True)
        whole.chmod(0o700)
        with whole.open("rb") as file:
            flush_to_disk(file.fileno())
        os.replace(whole, made)


def _processor() -> bytes:
    """What `-march=native` depends on: a home folder may be shared by machines with several kinds of processors."""
    path = Path("/proc/cpuinfo")
    lines = path.read_bytes().split(b"\n\n")[0].splitlines() if path.exists() else [platform.processor().encode()]
    return b"\n".join(
        line for line in lines if line.startswith((b"model name", b"flags", b"Features")) or len(lines) == 1
    )
