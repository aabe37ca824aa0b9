"""Reads the images of a set one by one, in shard order; image files are decoded in parallel on all cores."""

import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmfsd.data.image_files.decode import decode_image
from fmfsd.data.image_files.source_files import FileState
from fmfsd.data.image_files.thread_map import map_in_threads
from fmfsd.data.unsharded_set import FileImages, Images
from fmfsd.errors import Problem


@dataclass
class ImageReader:
    """Yields each image as bytes. A damaged image is replaced by a black one and listed in `damaged`."""

    states: dict[Path, FileState] = field(default_factory=dict)
    """States of all files that were read, including damaged ones."""
    damaged: dict[Path, Problem] = field(default_factory=dict)

    def read(self, parts: Sequence[Images]) -> Generator[bytes]:
        """Yield the images of all `parts`. Close the iterator, or its threads run until it is garbage-collected."""
        files = [(path, part.side) for part in parts if isinstance(part, FileImages) for path in part.paths]
        if files:
            return self._decode(files)
        return (image.tobytes() for part in parts if isinstance(part, np.ndarray) for image in part)

    def _decode(self, files: Sequence[tuple[Path, int]]) -> Generator[bytes]:
        with warnings.catch_warnings(), closing(map_in_threads(_read_file, files)) as results:
            warnings.filterwarnings("ignore", module="PIL")  # they do not name the file
            for (path, _), (pixels, state, problem) in zip(files, results, strict=True):
                if state is not None:
                    self.states[path] = state
                if problem is not None:
                    self.damaged[path] = problem
                yield pixels


def _read_file(source: tuple[Path, int]) -> tuple[bytes, FileState | None, Problem | None]:
    """Return an image's pixels, the state of its file unless it can't be opened, and the problem if it is damaged."""
    path, side = source
    state = None
    try:
        with path.open("rb") as file:
            state = FileState.read(file)
            return decode_image(file, side).tobytes(), state, None
    except Exception as error:  # decoders raise nearly anything for damaged files
        problem = Problem(str(path), f"can't be decoded: {str(error) or type(error).__name__}")
        return bytes(3 * side * side), state, problem
