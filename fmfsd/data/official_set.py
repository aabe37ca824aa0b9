"""An official set from its files: images, labels and class names, checked."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmfsd.data.index import SHAPE, SourceFile
from fmfsd.data.official import OfficialFile, OfficialSet, read_files
from fmfsd.data.raw_set import RawSet, Samples
from fmfsd.data.restricted_pickle import load_arrays
from fmfsd.errors import DataError, Problem

log = logging.getLogger(__name__)


def read_official(official: OfficialSet, num_classes: int, source: Path) -> RawSet:
    files = read_files(official, source)
    for file in files.values():
        if not file.is_official:
            log.warning(
                "%s: MD5 %s is not the official %s; recorded in the index", file.where, file.md5, file.expected_md5
            )
    (meta,) = (files[name] for name in official.meta)
    classes = _class_names(load_arrays(meta.data, meta.where).get(official.names_key), num_classes, meta.where)
    train, test = (
        _merged(official, [files[name] for name in part], num_classes) for part in (official.train, official.test)
    )
    return RawSet(classes, train, test, _as_sources(files.values()))


def source_files(official: OfficialSet, source: Path) -> tuple[SourceFile, ...]:
    """Return the files of `official` in `source`, with their sums."""
    return _as_sources(read_files(official, source).values())


def _as_sources(files: Iterable[OfficialFile]) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(file.name, file.md5, file.is_official) for file in files)


def _class_names(names: Any, num_classes: int, where: str) -> tuple[str, ...]:
    """Return the names as text: Python 3 reads those of Python 2 as bytes, and writes them as such again."""
    found = [_as_text(name) for name in names] if isinstance(names, list) else None
    if found is None or len(found) != num_classes or not all(isinstance(name, str) for name in found):
        told = f"{len(found)} names" if found is not None else "no list of names"
        raise DataError([Problem(where, f"expected the names of {num_classes} classes, found {told}")])
    return tuple(found)


def _as_text(name: Any) -> Any:
    return name.decode("latin1") if isinstance(name, bytes) else name


def _merged(official: OfficialSet, files: list[OfficialFile], num_classes: int) -> Samples:
    images, labels = [], []
    for file in files:
        content = load_arrays(file.data, file.where)
        pixels, numbers = content.get("data"), _as_list(content.get(official.label_key))
        if problems := list(_contradictions(pixels, numbers, official.label_key, num_classes, file.where)):
            raise DataError(problems)
        images.append(np.ascontiguousarray(pixels).reshape(-1, *SHAPE))
        labels.append(np.asarray(numbers, np.int64))
    return Samples.numbered(np.concatenate(images), np.concatenate(labels))


def _as_list(labels: Any) -> Any:
    return labels.tolist() if isinstance(labels, np.ndarray) else labels


def _contradictions(pixels: Any, labels: Any, label_key: str, num_classes: int, where: str) -> Iterator[Problem]:
    is_table = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 2
    if not is_table or pixels.shape[1] != np.prod(SHAPE) or not len(pixels):
        yield Problem(where, f"'data': expected rows of 3072 bytes, found {_describe(pixels)}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        yield Problem(
            where,
            f"{label_key!r}: expected a list of whole numbers, found a {type(labels).__name__}; is it another set?",
        )
        return
    wrong = [(index, label) for index, label in enumerate(labels) if not 0 <= label < num_classes]
    for index, label in wrong[:10]:
        found = label if abs(label) < 10**9 else "a huge number"
        yield Problem(where, f"{label_key!r}[{index}] is {found}, expected 0 to {num_classes - 1}")
    if is_table and len(labels) != len(pixels):
        yield Problem(where, f"{len(pixels)} images but {len(labels)} labels")


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__}"
