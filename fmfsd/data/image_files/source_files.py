"""A record of the image files that a set was prepared from, with which later changes are detected."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path

from fmfsd.data.image_files.layouts import join_some
from fmfsd.data.image_files.thread_map import map_in_threads
from fmfsd.data.shards.index import SourceFile
from fmfsd.errors import DataError, Problem
from fmfsd.system.atomic_files import read_json, write_atomic

RECORD = "images.json"
FORMAT = 1


@dataclass(frozen=True)
class FileState:
    """A file's size, modification time and content hash."""

    size: int
    mtime_ns: int
    digest: str

    @classmethod
    def read(cls, file: BufferedReader) -> "FileState":
        """Return the state of an open file, and rewind the file."""
        status = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
        file.seek(0)
        return cls(status.st_size, status.st_mtime_ns, digest)


States = Mapping[str, FileState]
"""States by the file's path relative to the folder of images."""


def write_record(folder: Path, states: States) -> None:
    """Write `states` next to the shards of the set in `folder`."""
    content = {"format": FORMAT, "images": {name: astuple(state) for name, state in states.items()}}
    write_atomic(folder / RECORD, json.dumps(content, separators=(",", ":")), durable=False)


def read_record(folder: Path) -> dict[str, FileState]:
    """Read the record that `write_record` wrote. Raises DataError if it is missing or damaged."""
    try:
        content = read_json(folder / RECORD)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, expected {FORMAT}")
        return {name: FileState(*state) for name, state in content["images"].items()}
    except FileNotFoundError as error:
        problem = "missing, so changes of the images can't be detected: delete the set and prepare it again"
        raise DataError([Problem(str(folder / RECORD), problem)]) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"damaged: {error}; delete the set and prepare it again"
        raise DataError([Problem(str(folder / RECORD), problem)]) from error


def to_source(states: States) -> SourceFile:
    """Return a SourceFile with an MD5 sum of all names and contents, independent of the folder's location."""
    lines = (f"{name}\0{state.digest}\n" for name, state in sorted(states.items()))
    md5 = hashlib.md5("".join(lines).encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()
    return SourceFile("names and contents of all images", md5, official=True)


def find_differences(states: States, root: Path, names: Collection[str]) -> list[str]:
    """Return descriptions of the images `names` below `root` that were changed, added or removed since `states`."""
    common = sorted(states.keys() & set(names))
    same = map_in_threads(lambda name: _is_same(root / name, states[name]), common)
    differences = {
        "changed": [name for name, is_same in zip(common, same, strict=True) if not is_same],
        "added": set(names) - states.keys(),
        "removed": states.keys() - set(names),
    }
    return [f"{len(paths)} {change} ({join_some(paths)})" for change, paths in differences.items() if paths]


def _is_same(path: Path, state: FileState) -> bool:
    """Compare size and modification time; read the content only if the size is equal and the time differs."""
    try:
        status = path.stat()
        if status.st_size != state.size or status.st_mtime_ns == state.mtime_ns:
            return status.st_size == state.size
        with path.open("rb") as file:
            return FileState.read(file).digest == state.digest
    except OSError:
        return False
