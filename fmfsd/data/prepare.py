"""Prepares a data set as shards on disk; concurrent processes prepare it only once."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

from fmfsd.config.names import FOLDER, FOLDER_LAYOUT
from fmfsd.config.schema import DataConfig
from fmfsd.data.check_source import require_same_source
from fmfsd.data.cifar.download import download
from fmfsd.data.cifar.official_files import OFFICIAL, has_files
from fmfsd.data.shards.index import SetIndex, find_damaged_files, prepared_set_folder, read_index
from fmfsd.data.sources import read_set
from fmfsd.data.unsharded_set import RawSet
from fmfsd.data.write_shards import SetWriter
from fmfsd.errors import CheckError, ConfigError, DataError, Problem
from fmfsd.system.atomic_files import sync_folder
from fmfsd.system.file_locks import LockUnsupportedError, StaleLockError, wait_for_lock
from fmfsd.terminal import ProgressCallback

log = logging.getLogger(__name__)


def prepare(
    data: DataConfig,
    *,
    source: Path | None,
    fetch: bool,
    seed: int = 0,
    skip_damaged: bool = False,
    report: ProgressCallback,
) -> SetIndex:
    """Prepare the set that `data` describes below `data.root`, unless it exists, and return its index.

    `source` has the official files or the image folders; with `fetch`, missing official files are downloaded to the
    root. `seed` chooses the held-out samples; `skip_damaged` leaves out images that can't be read.
    Raises ConfigError, DataError or CheckError. Nothing is overwritten, and no incomplete set is left behind.
    """
    folder, writer = prepared_set_folder(data), SetWriter(data, seed, skip_damaged, report)
    if skip_damaged and data.name != FOLDER:
        raise ConfigError(
            [Problem("--skip-damaged", f"applies to image folders only, not to {data.name}: leave it out")]
        )
    if source is not None and not source.exists():
        raise DataError(
            [Problem(str(source), "does not exist: give the folder of the images or of the official files")]
        )
    if os.path.exists(folder):  # complete, as it is renamed last; a user with read access can't lock it
        return _existing(folder, seed, source, report)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(folder.parent / f".{folder.name}.lock", log.warning):
            if folder.exists():
                return _existing(folder, seed, source, report)
            raw = read_set(data.name, _source(data, source, fetch, report), size=data.size, report=report)
            _write_whole(raw, folder, writer)
    except (StaleLockError, LockUnsupportedError) as error:
        raise CheckError(str(error)) from error
    except OSError as error:
        path = error.filename or folder
        raise CheckError([Problem(str(path), f"can't be read or written: {error.strerror or error}")]) from error
    return read_index(folder)


def _existing(folder: Path, seed: int, source: Path | None, report: ProgressCallback) -> SetIndex:
    """Return the index of the set in `folder`. Raises DataError if it is damaged or was not prepared from `source`."""
    index = read_index(folder)
    if problems := list(find_damaged_files(index, checksums=True)):
        raise DataError(problems)
    if source is not None:
        require_same_source(index, source, report)
    if index.seed != seed and index.valid:
        raise DataError(
            [
                Problem(
                    str(folder), f"was prepared with seed {index.seed}, not {seed}: choose another --out or that seed"
                )
            ]
        )
    return index


def _source(data: DataConfig, source: Path | None, fetch: bool, report: ProgressCallback) -> Path | None:
    """Return the folder of the source files, downloading official ones if needed; None for a set without files."""
    if data.name == FOLDER:
        if source is None:
            raise ConfigError(
                [Problem("--source", f"is required for image folders: give a folder with {FOLDER_LAYOUT}")]
            )
        return source
    if data.name not in OFFICIAL:
        return None
    official, root = OFFICIAL[data.name], Path(str(data.root))
    location = source or root
    if has_files(official, location) or not fetch:
        return location
    try:
        download(official.url, root / official.archive, md5=official.archive_md5, report=report)
    except CheckError as error:
        advice = f"put {official.archive} or {official.folder}/ into {root}; `fmfsd-launch smoke` needs no files"
        raise CheckError([*error.problems, Problem("", advice)]) from error
    return root


def _write_whole(raw: RawSet, folder: Path, writer: SetWriter) -> None:
    """Write the set to a temporary folder and rename it. First remove temporary folders of killed preparations."""
    for leftover in folder.parent.glob(f".{folder.name}.*/"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        temporary = Path(scratch) / folder.name
        temporary.mkdir()
        writer.write(raw, temporary)
        os.rename(temporary, folder)
    sync_folder(folder.parent)
