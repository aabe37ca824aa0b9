"""Checkpoints on disk: a folder `step-...` of safetensors, JSON and a manifest with every file's SHA-256 sum.

It is written under another name, flushed, and renamed.
"""

import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from fmfsd.checkpoint.checkpoint import FILES, Saved
from fmfsd.errors import CheckpointError, UnreadableCheckpointError
from fmfsd.run.train_position import Position, positions_in
from fmfsd.system.atomic_files import (
    access_remedy,
    free_space,
    json_object,
    read_json,
    read_own,
    sync_folder,
    write_json,
    write_whole,
)

log = logging.getLogger(__name__)
CHECKPOINT_FORMAT = 1
MANIFEST = "manifest.json"
DAMAGE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO)
"""Errors of a file that is missing, of another kind, or on a bad sector. After any other it may well be healthy."""


class CheckpointFolder:
    """The checkpoints in `path`; at any time at most one process uses it.

    `require_ours` raises if another process has taken the run over.
    """

    def __init__(self, path: Path, *, keep: int, require_ours: Callable[[], None]) -> None:
        self.path, self._keep, self._require_ours = path, keep, require_ours

    def write(self, saved: Saved) -> None:
        """Add a checkpoint and remove those that are surplus; one of this position that is there stays as it is.

        Raises NonFiniteLossError, FencedError, or CheckpointError if it can't be written; the others stay whole.
        """
        saved.require_finite()
        if (self.path / saved.position.folder_name).exists():
            return
        contents = saved.contents()
        try:
            self._commit(saved, contents)
        except OSError as error:
            needed = sum(map(len, contents.values()))
            raise CheckpointError(
                f"{self.path}: step {saved.position.step} not saved: {error}{_missing(self.path, error, needed)}"
            ) from error
        try:
            self._prune()
        except OSError as error:
            log.warning("%s: those that are surplus were not removed: %s", self.path, error)

    def best_score(self) -> float | None:
        """The highest there is; None without any."""
        best = self._best(positions_in(self.path))
        return None if best is None else _score(self.path / best.folder_name)

    def read(self, name: str) -> Saved:
        """Raises what `load_checkpoint` raises."""
        return load_checkpoint(self.path / name)

    def newest(self) -> str | None:
        """The name of the newest checkpoint that verifies; "" if none does, None if there is none.

        Damaged ones that are newer are set aside, so that they neither block nor outlive their successors. Raises
        UnreadableCheckpointError for one that can't be read now and may be healthy: training its steps again, unasked,
        would be a waste.
        """
        self._clear_away()
        found = positions_in(self.path)
        for number, position in enumerate(found):
            try:
                self.read(position.folder_name)
            except UnreadableCheckpointError:
                raise
            except CheckpointError as error:
                log.warning("%s; trying the one before", error)
            else:
                self._set_aside(found[:number])
                return position.folder_name
        return "" if found else None

    def _commit(self, saved: Saved, contents: dict[str, bytes]) -> None:
        scratch = self.path / f".tmp-{saved.position.folder_name}-{os.getpid()}"
        scratch.mkdir(mode=0o700)
        try:
            self._require_ours()
            for name, content in contents.items():
                write_whole(scratch / name, content)
            write_json(scratch / MANIFEST, _manifest(contents))
            os.rename(scratch, self.path / saved.position.folder_name)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        sync_folder(self.path)

    def _clear_away(self) -> None:
        """What was being written or removed when its process ended; renamed first, so that nobody can finish it."""
        for scratch in list(self.path.glob(".tmp-*")):
            doomed = self.path / f".tmp-doomed-{time.time_ns()}"
            os.rename(scratch, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _set_aside(self, damaged: list[Position]) -> None:
        for position in damaged:
            name = f"damaged-{position.folder_name}-{time.time_ns()}"
            os.rename(self.path / position.folder_name, self.path / name)
            log.warning("the damaged checkpoint is kept as %s", self.path / name)

    def _prune(self) -> None:
        """Remove all but the newest so many and the best."""
        found = positions_in(self.path)
        for position in set(found[self._keep :]) - {self._best(found)}:
            scratch = self.path / f".tmp-old-{position.folder_name}"
            os.rename(self.path / position.folder_name, scratch)
            shutil.rmtree(scratch)

    def _best(self, found: list[Position]) -> Position | None:
        """The first of those with the highest score."""
        scores = {position: _score(self.path / position.folder_name) for position in reversed(found)}
        judged = {position: score for position, score in scores.items() if score is not None}
        return max(judged, key=judged.__getitem__, default=None)


def _manifest(contents: dict[str, bytes]) -> dict[str, object]:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return {"format": CHECKPOINT_FORMAT, "sha256": sums}


def load_checkpoint(folder: Path) -> Saved:
    """Return the checkpoint in `folder`, whoever owns it: its files are tensors and JSON, and can hold no code.

    Raises CheckpointError unless all files are there, as the manifest says, and of the folder's position;
    UnreadableCheckpointError if this process can't read them now.
    """
    try:
        return _verified(folder)
    except OSError as error:
        if error.errno in DAMAGE:
            raise _damaged(folder, error) from error
        remedy = f": {access_remedy(folder)}" if isinstance(error, PermissionError) else ""
        raise UnreadableCheckpointError(f"checkpoint {folder} can't be read: {error}{remedy}") from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise _damaged(folder, error) from error


def _verified(folder: Path) -> Saved:
    if folder.is_symlink():
        raise ValueError("it is a symbolic link")
    manifest = json_object(read_own(folder / MANIFEST), folder / MANIFEST)
    if manifest.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"format {manifest.get('format')}, expected {CHECKPOINT_FORMAT}")
    contents = {name: read_own(folder / name) for name in FILES}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
            raise ValueError(f"{name} is not what the manifest says")
    saved = Saved.of(contents)
    if saved.position.folder_name != folder.name:
        raise ValueError(f"it holds {saved.position}")
    return saved


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} is damaged: {error}")


def _score(folder: Path) -> float | None:
    """OSError if it can't be read now: what may be the best is not removed."""
    try:
        score = read_json(folder / "state.json").get("score")
    except ValueError:
        return None
    return score if isinstance(score, float) else None


def _missing(folder: Path, error: OSError, needed: int) -> str:
    """How much a full disk lacks."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    free, files = free_space(folder)
    lacking = f"{max(0, needed - free) / 2**20:.1f} MiB more" if needed > free else "more files or quota"
    have = f"{free / 2**20:.1f} MiB and {files} files are free"
    return f"; it needs {needed / 2**20:.1f} MiB, {have}: make room for {lacking}"
