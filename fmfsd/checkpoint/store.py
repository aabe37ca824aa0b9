"""Checkpoint store: one folder `step-...` per checkpoint with safetensors, JSON and a manifest of SHA-256 checksums.

A checkpoint is written under a temporary name, flushed, and renamed.
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

from fmfsd.checkpoint.checkpoint import CHECKPOINT_FILES, Checkpoint
from fmfsd.checkpoint.retention import delete_old_checkpoints, find_best, read_score
from fmfsd.errors import CheckpointError, UnreadableCheckpointError
from fmfsd.run.train_position import TrainPosition, list_positions
from fmfsd.system.atomic_files import (
    access_remedy,
    free_space,
    parse_json_object,
    read_regular_file,
    sync_folder,
    write_atomic,
    write_json,
)

log = logging.getLogger(__name__)
CHECKPOINT_FORMAT = 1
MANIFEST = "manifest.json"
DAMAGE_ERRNOS = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO)
"""Errors that mean a damaged checkpoint: a file is missing, not a regular file, or on a bad sector. After any other
error the checkpoint may be intact."""


class CheckpointStore:
    """The checkpoints in `path`, used by at most one process at any time.

    `keep` is the number of newest checkpoints that are not deleted. `check_fence` raises if another process has taken
    over the run.
    """

    def __init__(self, path: Path, *, keep: int, check_fence: Callable[[], None]) -> None:
        self.path, self._num_newest, self._require_ours = path, keep, check_fence

    def write(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint and delete old ones; an existing checkpoint of the same position is not changed.

        Raises NonFiniteLossError, FencedError, or CheckpointError if it can't be written; the others stay intact.
        """
        checkpoint.require_finite()
        if (self.path / checkpoint.position.folder_name).exists():
            return
        contents = checkpoint.to_files()
        try:
            self._commit(checkpoint, contents)
        except OSError as error:
            needed = sum(map(len, contents.values()))
            space = _describe_missing_space(self.path, error, needed)
            raise CheckpointError(f"{self.path}: step {checkpoint.position.step} not saved: {error}{space}") from error
        try:
            delete_old_checkpoints(self.path, keep=self._num_newest)
        except OSError as error:
            log.warning("%s: old checkpoints were not deleted: %s", self.path, error)

    def best_score(self) -> float | None:
        """Return the highest score of all checkpoints; None without any."""
        best = find_best(self.path, list_positions(self.path))
        return None if best is None else read_score(self.path / best.folder_name)

    def load(self, name: str) -> Checkpoint:
        """Return the checkpoint `name`. Raises what `load_checkpoint` raises."""
        return load_checkpoint(self.path / name)

    def find_newest(self) -> str | None:
        """Return the name of the newest checkpoint that passes verification, "" if none does, None if there is none.

        Renames newer, damaged checkpoints, so that they neither block new checkpoints of the same steps nor appear
        newer than these. Raises UnreadableCheckpointError for a checkpoint that can't be read now and may be intact: to
        skip it silently would mean to train its steps again.
        """
        self._delete_temporary()
        positions = list_positions(self.path)
        for number, position in enumerate(positions):
            try:
                self.load(position.folder_name)
            except UnreadableCheckpointError:
                raise
            except CheckpointError as error:
                log.warning("%s; trying the previous checkpoint", error)
            else:
                self._rename_damaged(positions[:number])
                return position.folder_name
        return "" if positions else None

    def _commit(self, checkpoint: Checkpoint, contents: dict[str, bytes]) -> None:
        scratch = self.path / f".tmp-{checkpoint.position.folder_name}-{os.getpid()}"
        scratch.mkdir(mode=0o700)
        try:
            self._require_ours()
            for name, content in contents.items():
                write_atomic(scratch / name, content)
            write_json(scratch / MANIFEST, _build_manifest(contents))
            os.rename(scratch, self.path / checkpoint.position.folder_name)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        sync_folder(self.path)

    def _delete_temporary(self) -> None:
        """Delete what an ended process was writing or deleting; rename it first, so that no process can complete it."""
        for scratch in list(self.path.glob(".tmp-*")):
            renamed = self.path / f".tmp-doomed-{time.time_ns()}"
            os.rename(scratch, renamed)
            shutil.rmtree(renamed, ignore_errors=True)

    def _rename_damaged(self, damaged: list[TrainPosition]) -> None:
        for position in damaged:
            name = f"damaged-{position.folder_name}-{time.time_ns()}"
            os.rename(self.path / position.folder_name, self.path / name)
            log.warning("the damaged checkpoint was renamed to %s", self.path / name)


def _build_manifest(contents: dict[str, bytes]) -> dict[str, object]:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return {"format": CHECKPOINT_FORMAT, "sha256": sums}


def load_checkpoint(folder: Path) -> Checkpoint:
    """Return the verified checkpoint in `folder`. Any user may own it: tensors and JSON can't contain code.

    Raises CheckpointError if a file is missing, a checksum of the manifest does not match, or the position differs from
    the folder's name; UnreadableCheckpointError if this process can't read the files now.
    """
    try:
        return _load_verified(folder)
    except OSError as error:
        if error.errno in DAMAGE_ERRNOS:
            raise _damage_error(folder, error) from error
        remedy = f": {access_remedy(folder)}" if isinstance(error, PermissionError) else ""
        raise UnreadableCheckpointError(f"checkpoint {folder} can't be read: {error}{remedy}") from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise _damage_error(folder, error) from error


def _load_verified(folder: Path) -> Checkpoint:
    if folder.is_symlink():
        raise ValueError("it is a symbolic link")
    manifest = parse_json_object(read_regular_file(folder / MANIFEST), folder / MANIFEST)
    if manifest.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"format {manifest.get('format')}, expected {CHECKPOINT_FORMAT}")
    contents = {name: read_regular_file(folder / name) for name in CHECKPOINT_FILES}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
            raise ValueError(f"the checksum of {name} differs from the manifest")
    checkpoint = Checkpoint.from_files(contents)
    if checkpoint.position.folder_name != folder.name:
        raise ValueError(f"it contains {checkpoint.position}")
    return checkpoint


def _damage_error(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} is damaged: {error}")


def _describe_missing_space(folder: Path, error: OSError, needed: int) -> str:
    """Return the missing space for a message if the disk is full; else empty."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    free, files = free_space(folder)
    missing = f"{max(0, needed - free) / 2**20:.1f} MiB more" if needed > free else "more files or quota"
    available = f"{free / 2**20:.1f} MiB and {files} files are free"
    return f"; it needs {needed / 2**20:.1f} MiB, {available}: make room for {missing}"
