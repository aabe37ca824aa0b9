"""Finds all images below a folder, in the order of torchvision's ImageFolder."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fmfsd.data.image_files.check_types import TYPES
from fmfsd.errors import Problem

log = logging.getLogger(__name__)
SUFFIXES = tuple(TYPES)
JUNK = frozenset(
    ("__macosx", ".ds_store", "@eadir", "lost+found", "thumbs.db", ".ipynb_checkpoints", "desktop.ini", "$recycle.bin")
)
"""Lower-case names of files and folders that operating systems, NAS devices and notebooks create."""

Entry = os.DirEntry[str]
_Folder = tuple[str, frozenset[str]]
"""A folder's path, and the real paths of the folders that links on the path to it left and entered."""


@dataclass
class ImageSearch:
    """A search of folders, which also collects dangling links, problems and skipped files."""

    dangling: dict[Path, Problem] = field(default_factory=dict)
    """Links with image extensions whose targets do not exist."""
    problems: list[Problem] = field(default_factory=list)
    junk: set[str] = field(default_factory=set)
    """Paths that were skipped because their names are in JUNK."""
    num_others: int = 0
    """Number of files outside of class folders or without an image extension."""

    def list_entries(self, folder: str | Path) -> list[Entry]:
        """Return the entries of `folder`, sorted by name, without hidden files and junk."""
        try:
            with os.scandir(folder) as iterator:
                entries = sorted(iterator, key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append(Problem(str(folder), f"can't be read: {error.strerror}"))
            return []
        self.junk.update(entry.path for entry in entries if entry.name.lower() in JUNK)
        return [entry for entry in entries if entry.name.lower() not in JUNK and not entry.name.startswith(".")]

    def find_images(self, folder: Path) -> list[Path]:
        """Return the images below `folder`, sorted by their folder's path, then by name."""
        images, folders = list[Path](), [(str(folder), frozenset({os.path.realpath(folder)}))]
        while folders:
            current = folders.pop()
            for entry in self.list_entries(current[0]):
                if is_folder(entry):
                    folders += _descend(entry, current)
                elif self._is_image(entry):
                    images.append(Path(entry.path))
        return sorted(images, key=lambda path: (str(path.parent), path.name))

    def _is_image(self, entry: Entry) -> bool:
        if not entry.name.lower().endswith(SUFFIXES):
            self.num_others += 1
            return False
        if is_dangling(entry):
            self.dangling[Path(entry.path)] = describe_dangling(entry)
            return True
        return os.path.isfile(entry.path)  # reading from a pipe would block forever


def is_folder(entry: Entry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _descend(entry: Entry, current: _Folder) -> Iterator[_Folder]:
    """Yield the folder `entry`, unless it is a link that leads back to a folder above it."""
    folder, passed = current
    if not entry.is_symlink():
        yield entry.path, passed
        return
    target, above = os.path.realpath(entry.path), passed | {os.path.realpath(folder)}
    if any(f"{path}/".startswith(f"{target}/") for path in above):
        log.warning("%s: skipped, as it links to %s, which contains it", entry.path, target)
    else:
        yield entry.path, above | {target}


def is_dangling(entry: Entry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def describe_dangling(entry: Entry) -> Problem:
    target = os.readlink(entry.path)
    return Problem(entry.path, f"a dangling link: its target {target} does not exist; restore it or remove the link")
