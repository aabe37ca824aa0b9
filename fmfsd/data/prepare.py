"""From a whole data set to shards on disk: once, however many processes ask for it."""

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
from fmfsd.data.raw_set import RawSet
from fmfsd.data.shards.index import SetIndex, damaged_files, read_index, set_folder
from fmfsd.data.sources import read_set
from fmfsd.data.write_shards import SetWriter
from fmfsd.errors import CheckError, ConfigError, DataError, Problem
from fmfsd.system.atomic_files import sync_folder
from fmfsd.system.file_locks import LockLeftError, LockUnsupportedError, wait_for_lock
from fmfsd.terminal import Report

log = logging.getLogger(__name__)


def prepare(
    data: DataConfig,
    *,
    source: Path | None,
    fetch: bool,
    seed: int = 0,
    skip_damaged: bool = False,
    report: Report,
) -> SetIndex:
    """The index of the set that `data` describes, which is made below `data.root` if it is not there yet.

    `source` has the official files or the image folders; with `fetch` official ones are downloaded to the root if they
    are not there. `seed` chooses the samples that are held out; `skip_damaged` leaves images out that can't be read.
    Raises ConfigError, DataError or CheckError; nothing half-made is left and nothing is overwritten.
    """
    folder, writer = set_folder(data), SetWriter(data, seed, skip_damaged, report)
    if skip_damaged and data.name != FOLDER:
        raise ConfigError([Problem("--skip-damaged", f"only image folders have files to skip, not {data.name}")])
    if source is not None and not source.exists():
        raise DataError([Problem(str(source), "does not exist: give the place of the images or of the official files")])
    if os.path.exists(folder):  # whole, as it got its name last: whoever may only read it can't lock it
        return _existing(folder, seed, source, report)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(folder.parent / f".{folder.name}.lock", log.warning):
            if folder.exists():
                return _existing(folder, seed, source, report)
            raw = read_set(data.name, _source(data, source, fetch, report), size=data.size, report=report)
            _write_whole(raw, folder, writer)
    except (LockLeftError, LockUnsupportedError) as error:
        raise CheckError(str(error)) from error
    except OSError as error:
        place = error.filename or folder
        raise CheckError([Problem(str(place), f"can't be read or written: {error.strerror or error}")]) from error
    return read_index(folder)


def _existing(folder: Path, seed: int, source: Path | None, report: Report) -> SetIndex:
    """Return the index of the set in `folder`. DataError if it is damaged, or was made from anything but `source`."""
    index = read_index(folder)
    if problems := list(damaged_files(index, checksums=True)):
        raise DataError(problems)
    if source is not None:
        require_same_source(index, source, report)
    if index.seed != seed and index.valid:
        raise DataError(
            [Problem(str(folder), f"was prepared with seed {index.seed}, not {seed}: choose another --out")]
        )
    return index


def _source(data: DataConfig, source: Path | None, fetch: bool, report: Report) -> Path | None:
    """Where the files are, official ones after fetching them if need be; None for a set that needs none."""
    if data.name == FOLDER:
        if source is None:
            raise ConfigError([Problem("--source", f"image folders need it: a folder with {FOLDER_LAYOUT}")])
        return source
    if data.name not in OFFICIAL:
        return None
    official, root = OFFICIAL[data.name], Path(str(data.root))
    place = source or root
    if has_files(official, place) or not fetch:
        return place
    try:
        download(official.url, root / official.archive, md5=official.archive_md5, report=report)
    except CheckError as error:
        advice = f"put {official.archive} or {official.folder}/ into {root}; `fmfsd-launch smoke` needs no files"
        raise CheckError([*error.problems, Problem("", advice)]) from error
    return root


def _write_whole(raw: RawSet, folder: Path, writer: SetWriter) -> None:
    """Make the set under another name, and rename it. What a killed preparation left is cleared away first."""
    for left in folder.parent.glob(f".{folder.name}.*/"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        built.mkdir()
        writer.write(raw, built)
        os.rename(built, folder)
    sync_folder(folder.parent)
