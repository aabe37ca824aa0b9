"""The ledger of a sweep: one fact (a JSON object) per line, flushed to disk before the sweep acts on it."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

from fmfsd.errors import CheckError, Problem
from fmfsd.system.atomic_files import flush_to_disk, sync_folder


class FactLog(Protocol):
    """Appends facts to a ledger."""

    def append_fact(self, fact: str, **values: Any) -> None: ...


class Ledger:
    """The ledger file, open for appending; an incomplete last line, left by a kill, is cut off."""

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.ftruncate(self._descriptor, path.read_bytes().rfind(b"\n") + 1)
        if is_new:
            sync_folder(path.parent)

    def append_fact(self, fact: str, **values: Any) -> None:
        """Append a fact and flush it to disk. Raise OSError if that fails; the ledger is then unchanged."""
        line = json.dumps({"fact": fact, **values}, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError("the ledger's disk is full")
            flush_to_disk(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, before)  # otherwise the next fact would continue this line
            raise

    def close(self) -> None:
        os.close(self._descriptor)


def read_facts(path: Path) -> list[dict[str, Any]]:
    """Return all facts in order; none without a ledger. Raise CheckError that names the damaged lines."""
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    parsed, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            fact = json.loads(line)
            parsed.append({**fact, "fact": str(fact["fact"])})
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged.append(Problem(f"{path}:{number}", "is not a valid fact: restore the line, or delete it"))
    if damaged:
        raise CheckError(damaged)
    return parsed
