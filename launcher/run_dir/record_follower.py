"""Follows what a run measures: each record once, also when a run that goes on replaces the file."""

import json
import os
from typing import Any

from fmfsd.run.run_dir import RunDir


class RecordFollower:
    """Reads only what was not read yet."""

    def __init__(self, run: RunDir) -> None:
        self._path = run.metrics
        self._inode, self._read_to, self._seen = -1, 0, set[bytes]()

    def look(self) -> list[dict[str, Any]]:
        """The whole lines that have come. A resumed run replaces the file; what it has kept is not new."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            if (inode := os.fstat(file.fileno()).st_ino) != self._inode:
                self._inode, self._read_to, kept = inode, 0, self._seen
                self._seen = set()
            else:
                kept = set()
            file.seek(self._read_to)
            lines = file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._read_to += sum(map(len, whole))
        self._seen |= set(whole)
        return [json.loads(line) for line in whole if line not in kept]
