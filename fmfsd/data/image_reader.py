"""Reads the images of a set one by one, in the order of its shards; files are decoded on all cores."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fmfsd.data.decode import decoded
from fmfsd.data.raw_set import FileImages, Images
from fmfsd.data.threads import map_in_threads
from fmfsd.errors import Problem


@dataclass
class ImageReader:
    """Yields each image as bytes. One whose file is damaged is black, and listed in `damaged`."""

    damaged: dict[Path, Problem] = field(default_factory=dict)

    def read(self, parts: Sequence[Images]) -> Iterator[bytes]:
        """Yield the images of all `parts`. Close the iterator, or its threads work until it is collected."""
        if all(isinstance(part, FileImages) for part in parts):
            return self._decode([part for part in parts if isinstance(part, FileImages)])
        return (image.tobytes() for part in parts for image in part)

    def _decode(self, parts: Sequence[FileImages]) -> Iterator[bytes]:
        files = ((path, part.side) for part in parts for path in part.paths)
        with warnings.catch_warnings(), closing(map_in_threads(_decode_file, files)) as results:
            warnings.filterwarnings("ignore", module="PIL")  # they name no file
            for path, pixels, problem in results:
                if problem is not None:
                    self.damaged[path] = problem
                yield pixels


def _decode_file(file: tuple[Path, int]) -> tuple[Path, bytes, Problem | None]:
    path, side = file
    try:
        return path, decoded(path, side).tobytes(), None
    except Exception as error:  # decoders raise nearly anything for damaged files
        problem = Problem(str(path), f"can't be decoded: {str(error) or type(error).__name__}")
        return path, bytes(3 * side * side), problem
