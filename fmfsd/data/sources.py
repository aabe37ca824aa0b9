"""A whole data set in memory, wherever it comes from: images, labels and class names, checked."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmfsd.config.known import DATASETS, FOLDER, STORED_SIDE
from fmfsd.data.decode import FileImages
from fmfsd.data.folders import Listing, first_of, list_images
from fmfsd.data.index import SHAPE, SourceFile
from fmfsd.data.official import OFFICIAL, OfficialFile, OfficialSet, read_files
from fmfsd.data.restricted_pickle import load_arrays
from fmfsd.data.synthetic import synthetic_images
from fmfsd.errors import DataError, Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Images (n, 3, H, W) uint8, labels (n,) and ids (n,): their position in the official order."""

    images: NDArray[np.uint8] | FileImages
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    def take(self, chosen: NDArray[Any]) -> "Samples":
        return Samples(self.images[chosen], self.labels[chosen], self.ids[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class RawSet:
    """A data set before it is cut. `sources` says which files it came from, with their MD5 sums.

    `damaged` grows while images are read, where that comes later.
    """

    classes: tuple[str, ...]
    train: Samples
    test: Samples
    sources: tuple[SourceFile, ...]
    valid: Samples | None = None
    shape: tuple[int, int, int] = SHAPE
    damaged: list[Problem] = field(default_factory=list)


def read_set(name: str, source: Path | None, *, size: int = SHAPE[1]) -> RawSet:
    """The set called `name`, from the official files in `source`, from the image folders there (for a network that sees
    `size` pixels) or, if it is synthetic, from its formula.

    Raises DataError for files that are missing, damaged or not what they should be.
    """
    if name == FOLDER:
        assert source is not None, "image folders need a source"
        return _read_folders(source, STORED_SIDE[size])
    if name in OFFICIAL:
        assert source is not None, "official sets need a source"
        return _read_official(OFFICIAL[name], DATASETS[name].num_classes, source)
    return _draw(name)


def _draw(name: str) -> RawSet:
    known = DATASETS[name]
    train, test = (
        _numbered(*synthetic_images(known.num_classes, count, seed=seed))
        for seed, count in ((1, known.train_samples), (2, known.test_samples))
    )
    return RawSet(tuple(f"pattern{number}" for number in range(known.num_classes)), train, test, sources=())


def _read_folders(source: Path, side: int) -> RawSet:
    listing, damaged = list_images(source), list[Problem]()
    if listing.dangling:
        raise DataError(first_of(list(listing.dangling.values())))
    splits = {
        name: _numbered(FileImages(part.paths, side, damaged), np.array(part.labels, np.int64))
        for name, part in listing.splits.items()
    }
    if "valid" in splits:  # ids of train and valid differ, as when valid is held out of train
        splits["valid"].ids[:] += len(splits["train"])
    sources = (_source_of(listing, source),)
    return RawSet(listing.classes, **splits, sources=sources, shape=(3, side, side), damaged=damaged)


def folder_source(source: Path) -> SourceFile:
    """What a set of image folders is known by: the sum of all names and sizes. DataError if they are not in order."""
    return _source_of(list_images(source), source)


def _source_of(listing: Listing, root: Path) -> SourceFile:
    """MD5 of the names and sizes of all images, below `root`: what tells one folder of images from another."""
    paths = [path for name in ("train", "test", "valid") if (part := listing.splits.get(name)) for path in part.paths]
    lines = (f"{path.relative_to(root)}\0{path.stat().st_size}\n" for path in paths)
    md5 = hashlib.md5("".join(lines).encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()
    return SourceFile("names and sizes of all images", md5, official=True)


def _numbered(images: NDArray[np.uint8] | FileImages, labels: NDArray[np.int64]) -> Samples:
    return Samples(images, labels, np.arange(len(labels), dtype=np.int64))


def _read_official(official: OfficialSet, num_classes: int, source: Path) -> RawSet:
    files = read_files(official, source)
    for file in files.values():
        if not file.is_official:
            log.warning(
                "%s: MD5 %s is not the official %s; recorded in the index", file.where, file.md5, file.expected_md5
            )
    (meta,) = (files[name] for name in official.meta)
    classes = _class_names(load_arrays(meta.data, meta.where).get(official.names_key), num_classes, meta.where)
    train, test = (
        _merged(official, [files[name] for name in part], num_classes) for part in (official.train, official.test)
    )
    sources = tuple(SourceFile(file.name, file.md5, file.is_official) for file in files.values())
    return RawSet(classes, train, test, sources)


def _class_names(names: Any, num_classes: int, where: str) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        found = f"{len(names)} names" if isinstance(names, list) else "no list of names"
        raise DataError([Problem(where, f"expected the names of {num_classes} classes, found {found}")])
    return tuple(names)


def _merged(official: OfficialSet, files: list[OfficialFile], num_classes: int) -> Samples:
    images, labels = [], []
    for file in files:
        content = load_arrays(file.data, file.where)
        pixels, numbers = content.get("data"), content.get(official.label_key)
        if problems := list(_contradictions(pixels, numbers, official.label_key, num_classes, file.where)):
            raise DataError(problems)
        images.append(np.asarray(pixels).reshape(-1, *SHAPE))
        labels.append(np.asarray(numbers, np.int64))
    return _numbered(np.concatenate(images), np.concatenate(labels))


def _contradictions(pixels: Any, labels: Any, label_key: str, num_classes: int, where: str) -> Iterator[Problem]:
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != np.prod(SHAPE) or not len(pixels):
        found = f"an array of shape {pixels.shape}" if isinstance(pixels, np.ndarray) else f"a {type(pixels).__name__}"
        yield Problem(where, f"'data': expected rows of 3072 bytes, found {found}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        yield Problem(
            where,
            f"{label_key!r}: expected a list of whole numbers, found a {type(labels).__name__}; is it another set?",
        )
        return
    wrong = [(index, label) for index, label in enumerate(labels) if not 0 <= label < num_classes]
    for index, label in wrong[:10]:
        found = label if abs(label) < 10**9 else "a huge number"
        yield Problem(where, f"{label_key!r}[{index}] is {found}, expected 0 to {num_classes - 1}")
    if isinstance(pixels, np.ndarray) and len(labels) != len(pixels):
        yield Problem(where, f"{len(pixels)} images but {len(labels)} labels")
