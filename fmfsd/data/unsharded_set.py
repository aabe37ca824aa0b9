"""A data set before it is split into shards: images in memory or in image files, labels and class names."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmfsd.data.shards.index import IMAGE_SHAPE, SourceFile
from fmfsd.errors import DataError, Problem


@dataclass(frozen=True)
class FileImages:
    """Images (n, 3, side, side) in the files `paths` (n,), decoded when they are read."""

    paths: NDArray[np.object_]
    side: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, selection: NDArray[Any]) -> "FileImages":
        return FileImages(self.paths[selection], self.side)


Images = NDArray[np.uint8] | FileImages
"""(n, 3, H, W) bytes."""


@dataclass(frozen=True)
class Samples:
    """Images, labels (n,) and ids (n,). An id is the position in the source; train and valid share no ids."""

    images: Images
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    @classmethod
    def number(cls, images: Images, labels: NDArray[np.int64], *, first: int = 0) -> "Samples":
        """Return samples with consecutive ids from `first`."""
        return cls(images, labels, np.arange(first, first + len(labels), dtype=np.int64))

    def take(self, selection: NDArray[Any]) -> "Samples":
        return Samples(self.images[selection], self.labels[selection], self.ids[selection])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class RawSet:
    """A data set, with a validation split if its source has one.

    `sources` are the official files that it was read from, `root` the folder of its images. `damaged` are images that
    are known to be unusable, `skipped` is the number of images that were left out.
    """

    classes: tuple[str, ...]
    train: Samples
    test: Samples
    sources: tuple[SourceFile, ...] = ()
    valid: Samples | None = None
    shape: tuple[int, int, int] = IMAGE_SHAPE
    root: Path | None = None
    damaged: Mapping[Path, Problem] = field(default_factory=dict)
    skipped: int = 0

    def drop(self, damaged: Mapping[Path, Problem]) -> "RawSet":
        """Return this set without the files `damaged`. Raises DataError if a class of a split has no other images."""
        train = self._drop("train", self.train, damaged)
        valid = self._drop("validation", self.valid, damaged, first=len(train)) if self.valid is not None else None
        test = self._drop("test", self.test, damaged)
        return replace(self, train=train, valid=valid, test=test, damaged={}, skipped=self.skipped + len(damaged))

    def _drop(self, name: str, samples: Samples, damaged: Collection[Path], *, first: int = 0) -> Samples:
        assert isinstance(samples.images, FileImages), "only images in files can be damaged one by one"
        intact = samples.take(np.array([path not in damaged for path in samples.images.paths]))
        counts = np.bincount(intact.labels, minlength=len(self.classes))
        if empty := [label for label, count in zip(self.classes, counts, strict=True) if not count]:
            message = f"all {name} images of class {empty[0]} are damaged: replace them, or remove the class"
            raise DataError(message)
        return Samples.number(intact.images, intact.labels, first=first)
