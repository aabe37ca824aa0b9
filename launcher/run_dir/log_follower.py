"""What is said in a run's logs, as they grow: whole lines, each with whose it is, in which no byte hurts a terminal."""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fmfsd.run.run_dir import RunDir
from launcher.config.plain_text import harmless, in_order
from launcher.run_dir.batch_jobs import jobs_of

READ_BYTES = 1 << 16
"""At most so much of a log is read in one look; a line that is longer is cut."""
TAIL_BYTES = 1 << 20
"""In which the last lines of a log are looked for."""
_RANK = re.compile(r"rank-([0-9]+)\.log")


class LogFollower:
    """Of all logs of a run, or of worker `rank` alone. The first look gives the last `lines` of those that are there.

    Logs may appear, grow, be cut and be replaced; one that can't be read now is read later.
    """

    def __init__(self, run: RunDir, *, rank: int | None = None, lines: int = 0) -> None:
        self._run, self._rank = run, rank
        self._logs = {path: GrowingFile(path) for path in self._named()}
        for log in self._logs.values():
            with suppress(OSError):
                log.skip_to_last(lines)

    def look(self) -> list[str]:
        """What is new, log by log; empty once there is nothing more for now."""
        said = []
        for path, name in self._named().items():
            with suppress(OSError):
                lines = self._logs.setdefault(path, GrowingFile(path)).new_lines()
                said += [f"[{name}] {harmless(line.decode(errors='replace'))}" for line in lines]
        return said

    def rest(self) -> list[str]:
        """Lines that have no end, for whoever waits no longer."""
        named = self._named()
        return [
            f"[{named[path]}] {harmless(log.unended.decode(errors='replace'))}"
            for path, log in self._logs.items()
            if log.unended
        ]

    def _named(self) -> dict[Path, str]:
        """`node 0 rank 1`, `node 0 starter`, `job 7`."""
        found = {}
        for path in sorted(self._run.logs.glob("node-*/*.log"), key=in_order):
            node, match = path.parent.name.replace("-", " "), _RANK.fullmatch(path.name)
            if self._rank is None or (match and int(match[1]) == self._rank):
                found[path] = f"{node} rank {match[1]}" if match else f"{node} {path.stem}"
        jobs = jobs_of(self._run) if self._rank is None else ()
        return {**found, **{self._run.path / job.log: f"job {job.id}" for job in jobs if job.log}}


class GrowingFile:
    """The lines of a file that somebody writes; `unended` is what stands behind the last whole one."""

    def __init__(self, path: Path) -> None:
        self._path, self._identity, self._at, self.unended = path, (-1, -1), 0, b""

    def skip_to_last(self, lines: int) -> None:
        """Leave out what stands before the last `lines` whole ones. OSError if it can't be read."""
        with self._opened() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            *whole, unended = file.read(TAIL_BYTES).split(b"\n")
        self._at = size - len(b"\n".join([*whole[max(0, len(whole) - lines) :], unended]))

    def new_lines(self) -> list[bytes]:
        """Those that have come to their end since the last call. OSError if it can't be read."""
        with self._opened() as file:
            file.seek(self._at)
            data = file.read(READ_BYTES)
        self._at += len(data)
        *lines, self.unended = (self.unended + data).split(b"\n")
        if len(self.unended) >= READ_BYTES:
            lines, self.unended = [*lines, self.unended], b""
        return lines

    def _opened(self) -> BinaryIO:
        """Begun anew if it is another file than before, or was cut. OSError for a pipe, which may never end."""
        file = os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK), "rb")
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            file.close()
            raise OSError(f"{self._path} is no regular file")
        if (found.st_dev, found.st_ino) != self._identity or found.st_size < self._at:
            self._identity, self._at, self.unended = (found.st_dev, found.st_ino), 0, b""
        return file
