"""The official CIFAR files: what they are called, where they are found, and whether they are the true ones.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from fmfsd.errors import DataError, Problem

LARGEST_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class OfficialSet:
    """One published set. Sums are the MD5 sums of its page and of its files."""

    folder: str
    url: str
    archive_md5: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    label_key: str
    names_key: str

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
    ),
}


@dataclass(frozen=True)
class OfficialFile:
    """A file's bytes and where they came from."""

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


def has_files(official: OfficialSet, source: Path) -> bool:
    return _locate(official, source) is not None


def read_files(official: OfficialSet, source: Path) -> dict[str, OfficialFile]:
    """Every file of `official`, by name, from `source`.

    `source` holds the folder or the archive, or is one of them. Raises DataError if a file is missing or unreadable.
    """
    found = _locate(official, source)
    if found is None:
        raise DataError(
            [Problem(str(source), f"has neither {official.folder}/ nor {official.archive}, from {official.url}")]
        )
    read = _from_folder(official, found) if found.is_dir() else _from_archive(official, found)
    files = {file.name: file for file in read}
    missing = [name for name in official.sums if name not in files]
    if missing:
        raise DataError([Problem(str(found), f"{', '.join(missing)} missing; get {official.archive} again")])
    return files


def _locate(official: OfficialSet, source: Path) -> Path | None:
    if source.is_file():
        return source
    for folder in (source, source / official.folder):
        if any((folder / name).is_file() for name in official.sums):
            return folder
    archive = source / official.archive
    return archive if archive.is_file() else None


def _from_folder(official: OfficialSet, folder: Path) -> Iterator[OfficialFile]:
    for name, md5 in official.sums.items():
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                yield OfficialFile(name, str(path), _read(file, str(path)), md5)


def _from_archive(official: OfficialSet, archive: Path) -> Iterator[OfficialFile]:
    """Reads the members that are wanted into memory; nothing is ever extracted to disk."""
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
        raise DataError(
            [Problem(str(archive), f"damaged archive: {error}; get it again from {official.url}")]
        ) from error


def _read(file: IO[bytes], where: str) -> bytes:
    data = file.read(LARGEST_FILE_BYTES + 1)
    if len(data) > LARGEST_FILE_BYTES:
        raise DataError([Problem(where, f"larger than {LARGEST_FILE_BYTES} bytes, so no official file")])
    return data
