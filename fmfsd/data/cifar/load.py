"""Loads CIFAR from its official files or Parquet files, and validates images, labels and class names."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmfsd.data.cifar.official_files import OfficialFile, OfficialSet, compute_md5, find_parquet_files, read_files
from fmfsd.data.cifar.parquet import read_parquet
from fmfsd.data.cifar.restricted_pickle import load_arrays
from fmfsd.data.shards.index import IMAGE_SHAPE, SourceFile
from fmfsd.data.unsharded_set import RawSet, Samples
from fmfsd.errors import DataError, Problem

log = logging.getLogger(__name__)

Table = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (n, 3, 32, 32) and their labels (n,)."""


def read_official(official: OfficialSet, source: Path) -> RawSet:
    """Load the set from the official or Parquet files in `source`. Raises DataError for invalid files."""
    parquet = find_parquet_files(official, source)
    return _read_parquet_set(official, parquet) if parquet else _read_pickles(official, read_files(official, source))


def read_source_files(official: OfficialSet, source: Path) -> tuple[SourceFile, ...]:
    """Return the files in `source` that the set is read from, with their MD5 sums."""
    parquet = find_parquet_files(official, source)
    return _describe_parquet(parquet) if parquet else _to_sources(read_files(official, source).values())


def _read_pickles(official: OfficialSet, files: Mapping[str, OfficialFile]) -> RawSet:
    for file in files.values():
        if not file.is_official:
            log.warning(
                "%s: its MD5 sum %s is not the official %s; this is recorded in the index",
                file.where,
                file.md5,
                file.expected_md5,
            )
    (meta,) = (files[name] for name in official.meta)
    num_classes = len(official.classes)
    classes = _read_class_names(load_arrays(meta.data, meta.where).get(official.names_key), num_classes, meta.where)
    train, test = (
        _merge([_read_pickle(official, files[name]) for name in part]) for part in (official.train, official.test)
    )
    return RawSet(classes, train, test, _to_sources(files.values()))


def _read_parquet_set(official: OfficialSet, files: Mapping[str, Sequence[Path]]) -> RawSet:
    sources = _describe_parquet(files)
    names = ", ".join(source.file for source in sources)
    log.warning("%s: Parquet files have no official MD5 sums to compare with; theirs are recorded in the index", names)
    train, test = (
        _merge([_read_parquet_table(official, path) for path in files[split]]) for split in ("train", "test")
    )
    return RawSet(official.classes, train, test, sources)


def _describe_parquet(files: Mapping[str, Sequence[Path]]) -> tuple[SourceFile, ...]:
    paths = [path for split in ("train", "test") for path in files[split]]
    return tuple(SourceFile(path.name, compute_md5(path), official=False) for path in paths)


def _to_sources(files: Iterable[OfficialFile]) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(file.name, file.md5, file.is_official) for file in files)


def _read_class_names(names: Any, num_classes: int, where: str) -> tuple[str, ...]:
    """Return the names as text: Python 3 reads the names that Python 2 wrote as bytes."""
    texts = [_to_text(name) for name in names] if isinstance(names, list) else None
    if texts is None or len(texts) != num_classes or not all(isinstance(name, str) for name in texts):
        found = f"{len(texts)} names" if texts is not None else "no list of names"
        raise DataError([Problem(where, f"expected the names of {num_classes} classes, found {found}")])
    return tuple(texts)


def _to_text(name: Any) -> Any:
    return name.decode("latin1") if isinstance(name, bytes) else name


def _read_pickle(official: OfficialSet, file: OfficialFile) -> Table:
    content, key = load_arrays(file.data, file.where), official.label_key
    return _check_table(content.get("data"), _to_list(content.get(key)), key, official, file.where)


def _read_parquet_table(official: OfficialSet, path: Path) -> Table:
    return _check_table(*read_parquet(path, official.parquet_label), official.parquet_label, official, str(path))


def _check_table(pixels: Any, labels: Any, label_key: str, official: OfficialSet, where: str) -> Table:
    if problems := list(_find_contradictions(pixels, labels, label_key, len(official.classes), where)):
        raise DataError(problems)
    return np.ascontiguousarray(pixels).reshape(-1, *IMAGE_SHAPE), np.asarray(labels, np.int64)


def _merge(tables: Sequence[Table]) -> Samples:
    images, labels = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return Samples.number(images, labels)


def _to_list(labels: Any) -> Any:
    return labels.tolist() if isinstance(labels, np.ndarray) else labels


def _find_contradictions(pixels: Any, labels: Any, label_key: str, num_classes: int, where: str) -> Iterator[Problem]:
    is_table = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 2
    if not is_table or pixels.shape[1] != np.prod(IMAGE_SHAPE) or not len(pixels):
        yield Problem(where, f"'data': expected rows of 3072 bytes, found {_describe(pixels)}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        yield Problem(
            where,
            f"{label_key!r}: expected a list of whole numbers, found a {type(labels).__name__}; "
            "check that it is the right data set",
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
