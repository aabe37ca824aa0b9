"""A sweep's ledger: one fact a line, each on the disk before anything is done about it."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

from fmfsd.errors import CheckError, Problem
from fmfsd.system.atomic_files import flush_to_disk, sync_folder


class Notebook(Protocol):
    """Keeps facts."""

    def note(self, fact: str, **values: Any) -> None: ...


class Ledger:
    """Appends facts. What a kill has left of a last line was no fact yet, and is cut off."""

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.ftruncate(self._descriptor, path.read_bytes().rfind(b"\n") + 1)
        if is_new:
            sync_folder(path.parent)

    def note(self, fact: str, **values: Any) -> None:
        """OSError if it could not be kept; then nothing of it is there."""
        line = json.dumps({"fact": fact, **values}, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError("the ledger's disk is full")
            flush_to_disk(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, before)  # else the next fact would stand in the same line
            raise

    def close(self) -> None:
        os.close(self._descriptor)


def facts(path: Path) -> list[dict[str, Any]]:
    """All of them, in order; none without a ledger. CheckError names the lines that are damaged."""
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            fact = json.loads(line)
            found.append({**fact, "fact": str(fact["fact"])})
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged.append(Problem(f"{path}:{number}", "is no fact: put it back, or take the line out"))
    if damaged:
        raise CheckError(damaged)
    return found
