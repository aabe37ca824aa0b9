"""A whole data set before it is cut into shards: images in memory or in files of their own, labels and class names."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmfsd.data.shards.index import SHAPE, SourceFile
from fmfsd.errors import DataError, Problem


@dataclass(frozen=True)
class FileImages:
    """Images (n, 3, side, side) in the files `paths` (n,), which are decoded when they are read."""

    paths: NDArray[np.object_]
    side: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, chosen: NDArray[Any]) -> "FileImages":
        return FileImages(self.paths[chosen], self.side)


Images = NDArray[np.uint8] | FileImages
"""(n, 3, H, W) bytes."""


@dataclass(frozen=True)
class Samples:
    """Images, labels (n,) and ids (n,): their position in the source; those of train and valid differ."""

    images: Images
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]

    @classmethod
    def number(cls, images: Images, labels: NDArray[np.int64], *, first: int = 0) -> "Samples":
        """Return these images with the ids from `first` on."""
        return cls(images, labels, np.arange(first, first + len(labels), dtype=np.int64))

    def take(self, chosen: NDArray[Any]) -> "Samples":
        return Samples(self.images[chosen], self.labels[chosen], self.ids[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class RawSet:
    """A data set, with a validation split if its source has one.

    `sources` are the official files that it came from, `root` is the folder of images that it comes from. `damaged` are
    images that are known to be unusable, `skipped` counts those that were left out.
    """

    classes: tuple[str, ...]
    train: Samples
    test: Samples
    sources: tuple[SourceFile, ...] = ()
    valid: Samples | None = None
    shape: tuple[int, int, int] = SHAPE
    root: Path | None = None
    damaged: Mapping[Path, Problem] = field(default_factory=dict)
    skipped: int = 0

    def drop(self, damaged: Mapping[Path, Problem]) -> "RawSet":
        """Return this set as if the files `damaged` were not there. DataError if a class has no others in a split."""
        train = self._drop("train", self.train, damaged)
        valid = self._drop("validation", self.valid, damaged, first=len(train)) if self.valid is not None else None
        test = self._drop("test", self.test, damaged)
        return replace(self, train=train, valid=valid, test=test, damaged={}, skipped=self.skipped + len(damaged))

    def _drop(self, name: str, samples: Samples, damaged: Collection[Path], *, first: int = 0) -> Samples:
        assert isinstance(samples.images, FileImages), "only images in files can be damaged one by one"
        kept = samples.take(np.array([path not in damaged for path in samples.images.paths]))
        present = np.bincount(kept.labels, minlength=len(self.classes))
        if gone := [label for label, count in zip(self.classes, present, strict=True) if not count]:
            message = f"all {name} images of class {gone[0]} are damaged: replace them, or remove the class"
            raise DataError(message)
        return Samples.number(kept.images, kept.labels, first=first)
