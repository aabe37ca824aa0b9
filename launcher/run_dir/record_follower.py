"""Record follower: returns each metric record once, also when a resumed run replaces the file."""

import json
import os
from typing import Any

from fmfsd.run.run_dir import RunDir


class RecordFollower:
    """Follows a run's metrics file and reads only what is new."""

    def __init__(self, run: RunDir) -> None:
        self._path = run.metrics
        self._inode, self._position, self._seen = -1, 0, set[bytes]()

    def poll(self) -> list[dict[str, Any]]:
        """Return the new complete records. A resumed run replaces the file; records that it preserved are not new."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            if (inode := os.fstat(file.fileno()).st_ino) != self._inode:
                self._inode, self._position, preserved = inode, 0, self._seen
                self._seen = set()
            else:
                preserved = set()
            file.seek(self._position)
            lines = file.read().splitlines(keepends=True)
        complete = [line for line in lines if line.endswith(b"\n")]
        self._position += sum(map(len, complete))
        self._seen |= set(complete)
        return [json.loads(line) for line in complete if line not in preserved]
