"""Log follower: new lines of a run's logs, each with the name of its log, and safe to print on a terminal."""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fmfsd.run.run_dir import RunDir
from launcher.config.plain_text import natural_sort_key, sanitize_line
from launcher.run_dir.batch_jobs import read_jobs

READ_BYTES = 1 << 16
"""Bytes read from a log per poll; a longer line is split."""
TAIL_BYTES = 1 << 20
"""Bytes at the end of a log in which its last lines are searched."""
_RANK = re.compile(r"rank-([0-9]+)\.log")


class LogFollower:
    """Follows all logs of a run, or that of worker `rank`. The first poll returns the last `lines` of existing logs.

    Logs may appear, grow, be truncated and be replaced; a log that can't be read now is tried again at the next poll.
    """

    def __init__(self, run: RunDir, *, rank: int | None = None, lines: int = 0) -> None:
        self._run, self._rank = run, rank
        self._logs = {path: GrowingFile(path) for path in self._names_by_path()}
        for log in self._logs.values():
            with suppress(OSError):
                log.skip_to_last(lines)

    def poll(self) -> list[str]:
        """Return the new lines, log by log; empty if there are none now."""
        lines = []
        for path, name in self._names_by_path().items():
            with suppress(OSError):
                new_lines = self._logs.setdefault(path, GrowingFile(path)).read_new_lines()
                lines += [f"[{name}] {sanitize_line(line.decode(errors='replace'))}" for line in new_lines]
        return lines

    def unended_lines(self) -> list[str]:
        """Return the last lines that have no line end, for use after the last poll."""
        named = self._names_by_path()
        return [
            f"[{named[path]}] {sanitize_line(log.unended.decode(errors='replace'))}"
            for path, log in self._logs.items()
            if log.unended
        ]

    def _names_by_path(self) -> dict[Path, str]:
        """Return the logs with their names: `node 0 rank 1`, `node 0 starter`, `job 7`."""
        names = {}
        for path in sorted(self._run.logs.glob("node-*/*.log"), key=natural_sort_key):
            node, match = path.parent.name.replace("-", " "), _RANK.fullmatch(path.name)
            if self._rank is None or (match and int(match[1]) == self._rank):
                names[path] = f"{node} rank {match[1]}" if match else f"{node} {path.stem}"
        jobs = read_jobs(self._run) if self._rank is None else ()
        return {**names, **{self._run.path / job.log: f"job {job.id}" for job in jobs if job.log}}


class GrowingFile:
    """The lines of a file that another process writes; `unended`: the text after the last complete line."""

    def __init__(self, path: Path) -> None:
        self._path, self._identity, self._position, self.unended = path, (-1, -1), 0, b""

    def skip_to_last(self, lines: int) -> None:
        """Skip what precedes the last `lines` complete lines. OSError if the file can't be read."""
        with self._open() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            *whole, unended = file.read(TAIL_BYTES).split(b"\n")
        self._position = size - len(b"\n".join([*whole[max(0, len(whole) - lines) :], unended]))

    def read_new_lines(self) -> list[bytes]:
        """Return the lines completed since the last call. OSError if the file can't be read."""
        with self._open() as file:
            file.seek(self._position)
            data = file.read(READ_BYTES)
        self._position += len(data)
        *lines, self.unended = (self.unended + data).split(b"\n")
        if len(self.unended) >= READ_BYTES:
            lines, self.unended = [*lines, self.unended], b""
        return lines

    def _open(self) -> BinaryIO:
        """Open the file; start at 0 if it was replaced or truncated. OSError for a pipe, which might block for ever."""
        file = os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK), "rb")
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            file.close()
            raise OSError(f"{self._path} is no regular file")
        if (info.st_dev, info.st_ino) != self._identity or info.st_size < self._position:
            self._identity, self._position, self.unended = (info.st_dev, info.st_ino), 0, b""
        return file
