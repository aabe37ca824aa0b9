"""Reads a data set by name: from image folders, from official files, or generated."""

from pathlib import Path

import numpy as np

from fmfsd.config.names import DATASETS, FOLDER, STORED_IMAGE_SIDE
from fmfsd.data.cifar.load import read_official
from fmfsd.data.cifar.official_files import OFFICIAL
from fmfsd.data.image_files.check_types import find_wrong_types
from fmfsd.data.image_files.layouts import list_images
from fmfsd.data.shards.index import IMAGE_SHAPE
from fmfsd.data.synthetic import synthetic_images
from fmfsd.data.unsharded_set import FileImages, RawSet, Samples
from fmfsd.terminal import ProgressCallback


def read_set(
    name: str, source: Path | None, *, size: int = IMAGE_SHAPE[1], report: ProgressCallback = lambda *_: None
) -> RawSet:
    """Read the set `name` from the official files or image folders in `source`, or generate it if it is synthetic.

    `size` is the network's input size in pixels, for image folders. Raises DataError for files that are missing,
    damaged or unexpected.
    """
    if name == FOLDER:
        assert source is not None, "image folders need a source"
        return _read_folders(source, STORED_IMAGE_SIDE[size], report)
    if name in OFFICIAL:
        assert source is not None, "official sets need a source"
        return read_official(OFFICIAL[name], source)
    return _generate(name)


def _generate(name: str) -> RawSet:
    known = DATASETS[name]
    train, test = (
        Samples.number(*synthetic_images(known.num_classes, count, seed=seed))
        for seed, count in ((1, known.train_samples), (2, known.test_samples))
    )
    return RawSet(tuple(f"pattern{number}" for number in range(known.num_classes)), train, test)


def _read_folders(source: Path, side: int, report: ProgressCallback) -> RawSet:
    listing = list_images(source)
    present = [path for part in listing.splits.values() for path in part.paths if path not in listing.dangling]
    damaged = listing.dangling | find_wrong_types(present, report)
    num_train = len(listing.splits["train"].paths)
    splits = {
        name: Samples.number(
            FileImages(np.array(part.paths, object), side),
            np.array(part.labels, np.int64),
            first=num_train if name == "valid" else 0,
        )
        for name, part in listing.splits.items()
    }
    return RawSet(
        listing.classes,
        splits["train"],
        splits["test"],
        valid=splits.get("valid"),
        shape=(3, side, side),
        root=source,
        damaged=damaged,
    )
