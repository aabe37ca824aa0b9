"""Commands of a second user of this machine, and a folder that both can reach. Needs root."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.leaks import CHECKOUT

OTHER = 65_534
"""The id of a user that owns nothing."""
DEADLINE_S = 120.0


def _is_possible() -> bool:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    return (
        subprocess.run(_as_other(sys.executable, "-c", "import fmfsd.system.atomic_files"), cwd=CHECKOUT).returncode
        == 0
    )


def run_as_other(*argv: str, cwd: Path, umask: int = 0o022, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end as OTHER, whose home and caches are in `cwd`/home."""
    home = cwd / "home"
    home.mkdir(exist_ok=True)
    os.chown(home, OTHER, OTHER)
    own = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home), "USER": "other", **variables}
    return subprocess.run(
        _as_other(*argv),
        cwd=cwd,
        env={**os.environ, **own},
        umask=umask,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def _as_other(*argv: str) -> list[str]:
    return ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", *argv]


def as_other(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `function` returns to OTHER, in a child of this process, or the exception that it raises."""
    "localhost".encode("idna")  # sockets use this codec, whose module OTHER may not be able to read
    receiving, sending = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no lock that a thread of ours may hold
        child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(OTHER)
        os.setuid(OTHER)
        try:
            answer = function(*arguments)
        except BaseException as error:
            answer = error
        os.write(sending, pickle.dumps(answer))
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    return pickle.loads(content)


@contextmanager
def common_folder() -> Iterator[Path]:
    """A folder below none that is private, which pytest's are."""
    folder = Path(tempfile.mkdtemp(prefix="fmfsd-common-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def open_to_all(folder: Path) -> None:
    """What its owner does for a group: everybody may read and write everything in `folder`."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


needs_second_user = pytest.mark.skipif(
    not _is_possible(), reason="needs root, setpriv, and a checkout that all can read"
)
