"""From a whole data set to shards on disk: once, however many processes ask for it."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fmfsd.config.known import FOLDER
from fmfsd.config.schema import DataConfig
from fmfsd.data.download import download
from fmfsd.data.folders import LAYOUT, first_of
from fmfsd.data.index import SetIndex, ShardFile, SourceFile, damaged_files, read_index, set_folder
from fmfsd.data.official import OFFICIAL, has_files
from fmfsd.data.sources import RawSet, Samples, folder_source, read_set
from fmfsd.errors import CheckError, ConfigError, DataError, Problem
from fmfsd.files import SHARED, sync_folder, write_whole
from fmfsd.locks import LockLeftError, LockUnsupportedError, wait_for_lock
from fmfsd.terminal import Report

log = logging.getLogger(__name__)


def prepare(data: DataConfig, *, source: Path | None, fetch: bool, seed: int = 0, report: Report) -> SetIndex:
    """The index of the set that `data` describes, which is made below `data.root` if it is not there yet.

    `source` has the official files or the image folders; with `fetch` official ones are downloaded to the root if they
    are not there. `seed` chooses the samples that are held out. Raises ConfigError, DataError or CheckError; nothing
    half-made is left and nothing is overwritten.
    """
    folder = set_folder(data)
    if os.path.exists(folder):  # whole, as it got its name last: whoever may only read it can't lock it
        return _existing(folder, seed, _source_of_folders(data, source))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(folder.parent / f".{folder.name}.lock", log.warning):
            if folder.exists():
                return _existing(folder, seed, _source_of_folders(data, source))
            raw = read_set(data.name, _source(data, source, fetch, report), size=data.size)
            _write_whole_set(raw, data, seed, folder, report)
    except (LockLeftError, LockUnsupportedError) as error:
        raise CheckError(str(error)) from error
    except OSError as error:
        raise CheckError([Problem(str(folder), f"can't be written: {error}")]) from error
    return read_index(folder)


def _source_of_folders(data: DataConfig, source: Path | None) -> SourceFile | None:
    return folder_source(source) if data.name == FOLDER and source is not None else None


def _existing(folder: Path, seed: int, source: SourceFile | None) -> SetIndex:
    """`source`: what it must have been made from, if that is known."""
    index = read_index(folder)
    if problems := list(damaged_files(index, checksums=True)):
        raise DataError(problems)
    if source is not None and source not in index.sources:
        raise DataError([Problem(str(folder), "was prepared from other images: choose another --out")])
    if index.seed != seed and index.valid:
        raise DataError(
            [Problem(str(folder), f"was prepared with seed {index.seed}, not {seed}: choose another --out")]
        )
    return index


def _source(data: DataConfig, source: Path | None, fetch: bool, report: Report) -> Path | None:
    """Where the files are, official ones after fetching them if need be; None for a set that needs none."""
    if data.name == FOLDER:
        if source is None:
            raise ConfigError([Problem("--source", f"image folders need it: a folder with {LAYOUT}")])
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


def _write_whole_set(raw: RawSet, data: DataConfig, seed: int, folder: Path, report: Report) -> None:
    """Make the set under another name, and rename it. What a killed preparation left is cleared away first."""
    for left in folder.parent.glob(f".{folder.name}.*/"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        built.mkdir()
        _write(raw, data, seed, built, report)
        os.rename(built, folder)
    sync_folder(folder.parent)


def _write(raw: RawSet, data: DataConfig, seed: int, folder: Path, report: Report) -> None:
    train, valid = _hold_out(raw.train, data.valid, len(raw.classes), seed)
    splits = {"train": train, "valid": valid, "test": raw.test}
    splits = {name: samples for name, samples in splits.items() if len(samples) or name == "train"}
    if len(train) < data.shards:
        raise DataError(f"{len(train)} training samples can't be cut into {data.shards} shards")
    total = data.shards * len(splits)
    files: dict[str, list[ShardFile]] = {name: [] for name in splits}
    for done, (name, shard, samples) in enumerate(_cut(splits, data.shards), 1):
        files[name].append(_write_shard(folder / f"{name}-{shard:04d}.safetensors", samples))
        report(f"writing {data.name}", done, total)
    if raw.damaged:
        raise DataError(first_of(raw.damaged))
    index = SetIndex(folder, data.name, raw.shape, raw.classes, data.shards, data.valid, seed, {}, raw.sources)
    replace(index, splits={name: tuple(shards) for name, shards in files.items()}).write()


def _hold_out(samples: Samples, count: int, num_classes: int, seed: int) -> tuple[Samples, Samples]:
    """`samples` without and the `count` held out, the same number of each class, chosen by `seed`."""
    if count % num_classes:
        raise DataError(f"{count} held-out samples are not the same number of each of {num_classes} classes")
    lots = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(len(samples))
    held = np.zeros(len(samples), bool)
    for label in range(num_classes):
        members = np.flatnonzero(samples.labels == label)
        if count and len(members) <= count // num_classes:
            raise DataError(
                f"class {label} has {len(members)} samples; {count // num_classes} of them can't be held out"
            )
        held[members[np.argsort(lots[members], kind="stable")[: count // num_classes]]] = True
    return samples.take(~held), samples.take(held)


def _cut(splits: dict[str, Samples], shards: int) -> Iterator[tuple[str, int, Samples]]:
    """(split, shard, its samples): sample i goes to shard i mod L, so sizes differ by at most one."""
    for name, samples in splits.items():
        for shard in range(shards):
            yield name, shard, samples.take(np.arange(shard, len(samples), shards))


def _write_shard(path: Path, samples: Samples) -> ShardFile:
    arrays = {"images": samples.images, "labels": samples.labels, "ids": samples.ids}
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    write_whole(path, content, durable=False, mode=SHARED)
    return ShardFile(path.name, len(samples), len(content), hashlib.sha256(content).hexdigest())
