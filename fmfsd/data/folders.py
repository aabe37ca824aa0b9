"""Images as users have them: `ROOT/train/CLASS/*.png`, beside it `ROOT/test`, `ROOT/val` or `ROOT/valid`."""

import hashlib
import logging
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fmfsd.errors import DataError, Problem

log = logging.getLogger(__name__)
SUFFIXES = (".png", ".jpg", ".jpeg")
TEST_NAMES = ("test", "val", "valid")
LAYOUT = "train/CLASS/*.png or *.jpg, and test/CLASS/... (or val/, valid/)"
FORMATS = ("PNG", "JPEG")
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
SHOWN = 10
"""So many damaged files are named."""
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for files that are no images, or too large to be meant."""


@dataclass(frozen=True)
class Part:
    """One split: files in the order of their classes and names, and the number of each one's class."""

    paths: list[Path]
    labels: list[int]


@dataclass(frozen=True)
class Listing:
    """What lies in a folder of images; `classes` are sorted."""

    classes: tuple[str, ...]
    train: Part
    test: Part


class FileImages:
    """Images (n, 3, side, side) uint8 in files, decoded each time that an array of them is asked for.

    The shorter side is made `side` pixels long, and the middle of the longer one is taken. What can't be decoded is
    black, and told to `damaged`.
    """

    def __init__(self, paths: Sequence[Path], side: int, damaged: list[Problem]) -> None:
        self._paths, self._side, self._damaged = paths, side, damaged

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, chosen: NDArray[Any]) -> "FileImages":
        return FileImages([self._paths[n] for n in np.arange(len(self))[chosen]], self._side, self._damaged)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        images = np.zeros((len(self), 3, self._side, self._side), np.uint8)
        for image, path in zip(images, self._paths, strict=True):
            try:
                image[:] = decoded(path, self._side)
            except _DAMAGE as error:
                self._damaged.append(Problem(str(path), f"can't be decoded: {error}; replace it or take it away"))
        return images


def decoded(path: Path, side: int) -> NDArray[np.uint8]:
    """(3, side, side): the middle of the image, in red, green and blue."""
    with Image.open(path, formats=FORMATS) as file:
        if file.mode not in _EIGHT_BITS:
            raise ValueError(f"its pixels are of Pillow's mode {file.mode}, and 8 bits a channel are needed")
        image = ImageOps.exif_transpose(file).convert("RGB")
    return np.asarray(_middle(image, side)).transpose(2, 0, 1)


def _middle(image: Image.Image, side: int) -> Image.Image:
    """The largest square around the middle, at `side` pixels."""
    shorter = min(image.size)
    if shorter == side:
        left, top = ((length - side) // 2 for length in image.size)
        return image.crop((left, top, left + side, top + side))
    x, y = ((length - shorter) / 2 for length in image.size)
    return image.resize((side, side), Image.Resampling.BILINEAR, (x, y, x + shorter, y + shorter))


def list_images(root: Path) -> Listing:
    """The images below `root`. Raises DataError with everything that is wrong with their folders."""
    tests = [root / name for name in TEST_NAMES if (root / name).is_dir()]
    if problems := list(_wrong_splits(root, tests)):
        raise DataError(problems)
    train, test = (_by_class(folder) for folder in (root / "train", tests[0]))
    if problems := [*_wrong_classes(root / "train", train), *_wrong_classes(tests[0], test), *_unlike(train, test)]:
        raise DataError(problems)
    return Listing(tuple(train), _part(train), _part(test))


def sum_of(listing: Listing, root: Path) -> str:
    """MD5 of the names and sizes of all images, below `root`: what tells one folder of images from another."""
    paths = [*listing.train.paths, *listing.test.paths]
    lines = (f"{path.relative_to(root)}\0{path.stat().st_size}\n" for path in paths)
    return hashlib.md5("".join(lines).encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()


def first_of(damaged: Sequence[Problem]) -> list[Problem]:
    """The first few, and how many there are."""
    more = [Problem("", f"and {len(damaged) - SHOWN} more")] if len(damaged) > SHOWN else []
    return [*damaged[:SHOWN], *more]


def _wrong_splits(root: Path, tests: Sequence[Path]) -> Iterator[Problem]:
    if not (root / "train").is_dir():
        yield Problem(str(root), f"has no train/; expected {LAYOUT}")
    if not tests:
        yield Problem(str(root), f"has no test/, val/ or valid/; expected {LAYOUT}")
    if len(tests) > 1:
        found = " and ".join(f"{folder.name}/" for folder in tests)
        yield Problem(str(root), f"has {found}: leave the one that is to be tested on")


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """Its images by class, both sorted by name. Hidden files count for nothing, others are told of."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found, others = {}, 0
    for path in classes:
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        found[path.name] = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
        others += len(files) - len(found[path.name])
    if others:
        log.warning("%s: %d files are left out, as their names do not end in %s", folder, others, ", ".join(SUFFIXES))
    return found


def _wrong_classes(folder: Path, classes: dict[str, list[Path]]) -> Iterator[Problem]:
    if not classes:
        yield Problem(str(folder), f"has no classes; expected {LAYOUT}")
    for name in (name for name in classes if not name.isprintable()):  # what is not UTF-8 is not, either
        yield Problem(str(folder), f"{name!a} is no name for a class: give it letters, digits and signs")
    for name in (name for name, files in classes.items() if not files):
        yield Problem(str(folder / name), f"has no images: none of its names ends in {', '.join(SUFFIXES)}")


def _unlike(train: dict[str, list[Path]], test: dict[str, list[Path]]) -> Iterator[Problem]:
    for have, lack, where in ((train, test, "the test images"), (test, train, "train/")):
        if missing := sorted(have.keys() - lack.keys()):
            yield Problem("", f"{where} lack the classes {', '.join(missing[:SHOWN])}: both need the same ones")


def _part(classes: dict[str, list[Path]]) -> Part:
    labelled = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
    return Part([path for path, _ in labelled], [label for _, label in labelled])
