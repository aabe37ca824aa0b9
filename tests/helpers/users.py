"""A second user of this machine, as which tests run commands, and a folder that both users can reach. Needs root."""

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
"""User id of a user that owns no files."""
DEADLINE_S = 120.0


def _can_switch_user() -> bool:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    return (
        subprocess.run(
            _command_as_other(sys.executable, "-c", "import fmfsd.system.atomic_files"), cwd=CHECKOUT
        ).returncode
        == 0
    )


def run_as_other_user(*argv: str, cwd: Path, umask: int = 0o022, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `argv` as OTHER and wait for its end; HOME and caches of OTHER are in `cwd`/home."""
    home = cwd / "home"
    home.mkdir(exist_ok=True)
    os.chown(home, OTHER, OTHER)
    user_env = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home), "USER": "other", **variables}
    return subprocess.run(
        _command_as_other(*argv),
        cwd=cwd,
        env={**os.environ, **user_env},
        umask=umask,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def _command_as_other(*argv: str) -> list[str]:
    return ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", *argv]


def call_as_other_user(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` as OTHER in a child process; return its result or the exception that it raised."""
    "localhost".encode("idna")  # sockets use this codec, whose module OTHER may not be able to read
    receiving, sending = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no lock that another thread may hold
        child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(OTHER)
        os.setuid(OTHER)
        try:
            result = function(*arguments)
        except BaseException as error:
            result = error
        os.write(sending, pickle.dumps(result))
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    return pickle.loads(content)


@contextmanager
def common_folder() -> Iterator[Path]:
    """Create a folder whose parents are readable by all users, unlike pytest's temporary folders."""
    folder = Path(tempfile.mkdtemp(prefix="fmfsd-common-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def make_accessible_to_all(folder: Path) -> None:
    """Let every user read and write everything in `folder`, as an owner does for a group."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


needs_second_user = pytest.mark.skipif(
    not _can_switch_user(), reason="needs root, setpriv, and a checkout that all can read"
)
