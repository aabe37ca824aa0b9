"""The official CIFAR files: their names, MD5 sums and URLs, and how they are found and read.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO

from fmfsd.data.cifar.class_names import CIFAR10, CIFAR100
from fmfsd.data.image_files.file_types import GZIP, TAR, detect_file_type
from fmfsd.errors import DataError, Problem

LARGEST_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class OfficialSet:
    """A published set. `archive_md5` and the values of `train`, `test` and `meta` (by file name) are MD5 sums.

    `parquet_folder` and `parquet_label` are the folder and the label column of Hugging Face's Parquet files, which have
    no published sums.
    """

    folder: str
    url: str
    archive_md5: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    label_key: str
    names_key: str
    parquet_folder: str
    parquet_label: str
    classes: tuple[str, ...]

    @property
    def archive(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def sums(self) -> dict[str, str]:
        return self.train | self.test | self.meta


OFFICIAL = {
    "cifar10": OfficialSet(
        folder="cifar-10-batches-py",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        label_key="labels",
        names_key="label_names",
        parquet_folder="plain_text",
        parquet_label="label",
        classes=CIFAR10,
    ),
    "cifar100": OfficialSet(
        folder="cifar-100-python",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        label_key="fine_labels",
        names_key="fine_label_names",
        parquet_folder="cifar100",
        parquet_label="fine_label",
        classes=CIFAR100,
    ),
}


@dataclass(frozen=True)
class OfficialFile:
    """A file's bytes, and where they were read from."""

    name: str
    where: str
    data: bytes
    expected_md5: str

    @cached_property
    def md5(self) -> str:
        return hashlib.md5(self.data, usedforsecurity=False).hexdigest()

    @property
    def is_official(self) -> bool:
        return self.md5 == self.expected_md5


def compute_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def has_files(official: OfficialSet, source: Path) -> bool:
    return _locate(official, source) is not None or bool(find_parquet_files(official, source))


def read_files(official: OfficialSet, source: Path) -> dict[str, OfficialFile]:
    """Read all files of `official` from `source`, and return them by name.

    `source` contains the folder or the archive, or is one of them. Raises DataError if a file is missing or unreadable.
    """
    location = _locate(official, source)
    if location is None:
        expected = f"neither {official.folder}/ nor {official.archive}, from {official.url}, nor Parquet files of train"
        raise DataError([Problem(str(source), f"has {expected} and test")])
    read = _from_folder(official, location) if location.is_dir() else _from_archive(official, location)
    files = {file.name: file for file in read}
    missing = [name for name in official.sums if name not in files]
    if missing:
        raise DataError([Problem(str(location), f"{', '.join(missing)} missing; download {official.archive} again")])
    return files


def find_parquet_files(official: OfficialSet, source: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of train and test in `source`; empty if one is missing or official files exist."""
    if _locate(official, source) is not None:
        return {}
    base = source.parent if source.is_file() else source
    for folder in (base, base / official.parquet_folder):
        files: dict[str, list[Path]] = {"train": [], "test": []}
        for path in sorted(folder.glob("*.parquet")):
            if (split := _SPLIT.search(path.stem)) is not None:
                files[split[1]].append(path)
        if all(files.values()):
            return files
    return {}


_SPLIT = re.compile(r"(?<![A-Za-z])(train|test)(?![A-Za-z])")


def _locate(official: OfficialSet, source: Path) -> Path | None:
    """Return the folder or the archive of the official files in `source`, which may be either itself."""
    if source.is_file():
        return None if source.suffix == ".parquet" else source
    for folder in (source, source / official.folder):
        if any((folder / name).is_file() for name in official.sums):
            return folder
    name = re.compile(rf"{re.escape(official.archive.removesuffix('.tar.gz'))}{_DOWNLOADED}")
    archives = [path for path in source.glob("*") if name.fullmatch(path.name) and path.is_file()]
    return min(archives, key=lambda path: (path.name != official.archive, path.name), default=None)


_COPY = r"(?: ?\(\d+\))?"
_DOWNLOADED = rf"{_COPY}\.(?:tgz|tar{_COPY}(?:\.gz)?)"
"""Name endings that browsers give to archives: a second copy gets a number, and some browsers gunzip the file."""


def _from_folder(official: OfficialSet, folder: Path) -> Iterator[OfficialFile]:
    for name, md5 in official.sums.items():
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                yield OfficialFile(name, str(path), _read(file, str(path)), md5)


def _from_archive(official: OfficialSet, archive: Path) -> Iterator[OfficialFile]:
    """Read the needed members into memory; nothing is extracted to disk."""
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                if member.isfile() and name in official.sums and folder in (official.folder, f"./{official.folder}"):
                    file = tar.extractfile(member)
                    assert file is not None, "a regular member has content"
                    where = f"{archive}:{member.name}"
                    yield OfficialFile(name, where, _read(file, where), official.sums[name])
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        file_type = detect_file_type(archive)
        problem = f"damaged archive: {error}" if file_type in (GZIP, TAR) else f"{file_type}, not an archive"
        raise DataError([Problem(str(archive), f"{problem}; download it again from {official.url}")]) from error


def _read(file: IO[bytes], where: str) -> bytes:
    data = file.read(LARGEST_FILE_BYTES + 1)
    if len(data) > LARGEST_FILE_BYTES:
        raise DataError([Problem(where, f"larger than {LARGEST_FILE_BYTES} bytes, so not an official file")])
    return data
