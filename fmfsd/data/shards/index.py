"""The index of a prepared set: `index.json` with counts, classes and SHA-256 sums of the shard files."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError, with_config

from fmfsd.config.names import DATASETS, FOLDER, STORED_IMAGE_SIDE
from fmfsd.config.schema import DataConfig
from fmfsd.errors import DataError, Problem
from fmfsd.system.atomic_files import SHARED_MODE, access_remedy, read_json, sha256, write_json

INDEX_FORMAT = 1
SPLITS = ("train", "valid", "test")
CHECKED_AT_LAUNCH_BYTES = 1 << 30
"""For sets up to this size, each launch verifies all checksums (CIFAR: 0.1 s)."""

IMAGE_SHAPE = (3, 32, 32)
"""Channels, height and width of the images of the known data sets."""


@dataclass(frozen=True)
class ShardFile:
    """One shard: `samples` images in a file of `bytes` bytes."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,200}\.safetensors$")]
    samples: NonNegativeInt
    bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class SourceFile:
    """A file that a set was prepared from; `official` if its MD5 sum is the published one."""

    file: str
    md5: str
    official: bool


@dataclass(frozen=True)
class SetIndex:
    """The content of a prepared set. Every split has the same number of shards."""

    folder: Path
    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    shards: PositiveInt
    valid: NonNegativeInt
    seed: NonNegativeInt
    splits: dict[str, tuple[ShardFile, ...]]
    sources: tuple[SourceFile, ...] = ()
    skipped: NonNegativeInt = 0
    """Number of damaged source images that were left out."""

    def num_samples(self, split: str) -> int:
        return sum(shard.samples for shard in self.splits.get(split, ()))

    def max_worker_samples(self, split: str, world_size: int) -> int:
        """Return the largest number of samples of `split` that any worker has."""
        files, share = self.splits[split], self.shards // world_size
        return max(
            sum(shard.samples for shard in files[start : start + share]) for start in range(0, self.shards, share)
        )

    def total_bytes(self) -> int:
        return sum(shard.bytes for files in self.splits.values() for shard in files)

    def describe(self) -> str:
        splits = ", ".join(f"{self.num_samples(split)} {split}" for split in self.splits)
        unofficial = [source.file for source in self.sources if not source.official]
        warning = f"; not the official files: {', '.join(unofficial)}" if unofficial else ""
        skipped = f"; damaged images skipped: {self.skipped}" if self.skipped else ""
        return f"{splits} samples of {len(self.classes)} classes in {self.shards} shards{warning}{skipped}"

    def path(self, shard: ShardFile) -> Path:
        return self.folder / shard.name

    def write(self) -> None:
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_json(self.folder / "index.json", {"format": INDEX_FORMAT, **content}, mode=SHARED_MODE)


def prepared_set_folder(data: DataConfig) -> Path:
    """Return the folder below the root of the set that `data` describes; non-default settings are part of its name."""
    assert data.root is not None, "a loaded config has a root"
    shards = "" if data.shards == DataConfig().shards else f"-shards{data.shards}"
    valid = f"-valid{data.valid}" if data.valid else ""
    size = "" if data.size == DataConfig().size else f"-size{data.size}"
    return Path(data.root) / f"{data.name}{size}{shards}{valid}"


def read_index(folder: Path) -> SetIndex:
    """Read the index of the set in `folder`. Raises DataError if it is missing, malformed or inconsistent."""
    path = folder / "index.json"
    try:
        content = read_json(path)
        if content.pop("format", None) != INDEX_FORMAT:
            raise ValueError(f"its format is not {INDEX_FORMAT}")
        index = _FORMAT.validate_json(json.dumps({**content, "folder": str(folder)}), strict=True)
    except FileNotFoundError as error:
        remedy = "delete the folder, or choose another one" if folder.exists() else "run `fmfsd data prepare`"
        raise DataError([Problem(str(path), f"missing, so this is no prepared set: {remedy}")]) from error
    except PermissionError as error:
        raise DataError([Problem(str(path), f"can't be read: {access_remedy(folder)}")]) from error
    except (OSError, ValueError) as error:
        reason = _first_error(error) if isinstance(error, ValidationError) else error
        raise DataError(
            [Problem(str(path), f"not an index of a prepared set: {reason}; delete {folder} and prepare the set again")]
        ) from error
    if problems := list(_find_contradictions(index)):
        raise DataError(problems)
    return index


_FORMAT = TypeAdapter(with_config(ConfigDict(extra="forbid"))(SetIndex))


def _first_error(error: ValidationError) -> str:
    details = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, details['loc']))}: {details['msg']}"


def _find_contradictions(index: SetIndex) -> Iterator[Problem]:
    where = str(index.folder / "index.json")
    for split, files in index.splits.items():
        sizes = {shard.samples for shard in files}
        if split not in SPLITS or len(files) != index.shards:
            yield Problem(where, f"split {split} has {len(files)} files, expected {index.shards}")
        elif max(sizes) - min(sizes) > 1:
            yield Problem(
                where, f"split {split}: shard sizes from {min(sizes)} to {max(sizes)} differ by more than one"
            )
    if not _is_known(index):
        found = f"{index.name!r}, {len(index.classes)} classes, images of {index.shape}"
        yield Problem(where, f"does not describe a known data set: {found}")
    if not {"train", "test"} <= set(index.splits):
        yield Problem(where, f"has only the splits {', '.join(index.splits) or 'none'}")


def _is_known(index: SetIndex) -> bool:
    if index.name == FOLDER:
        return bool(index.classes) and index.shape in {(3, side, side) for side in STORED_IMAGE_SIDE.values()}
    known = DATASETS.get(index.name)
    return known is not None and len(index.classes) == known.num_classes and index.shape == IMAGE_SHAPE


def find_damaged_files(index: SetIndex, *, checksums: bool) -> Iterator[Problem]:
    """Yield a problem for each shard file that is missing, or whose size or (with `checksums`) content is wrong."""
    remedy = f"delete {index.folder} and prepare the set again"
    shards = [shard for files in index.splits.values() for shard in files]
    paths = map(index.path, shards)
    if denied := next((path for path in paths if path.exists() and not os.access(path, os.R_OK)), None):
        yield Problem(str(denied), f"can't be read: {access_remedy(index.folder)}")
        return
    for shard in shards:
        path = index.path(shard)
        if not path.is_file():
            yield Problem(str(path), f"missing; {remedy}")
        elif path.stat().st_size != shard.bytes:
            yield Problem(str(path), f"{path.stat().st_size} bytes, expected {shard.bytes}; {remedy}")
        elif checksums and (found := sha256(path)) != shard.sha256:
            sums = f"SHA-256 {found[:16]}..., expected {shard.sha256[:16]}..."
            yield Problem(str(path), f"damaged: {sums}; {remedy}")
