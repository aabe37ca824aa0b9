"""Verifies a prepared set completely: every checksum, count and label."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from fmfsd.data.shards.index import SetIndex, ShardFile, find_damaged_files, read_index
from fmfsd.errors import DataError, Problem


def verify_sets(folder: Path) -> list[SetIndex]:
    """Verify the set in `folder`, or all sets one level below, and return the indexes. Raises DataError."""
    folders = (
        [folder]
        if (folder / "index.json").exists()
        else sorted(path.parent for path in folder.glob("[!.]*/index.json"))
    )
    if not folders:
        raise DataError([Problem(str(folder), "has no prepared set: no index.json here or one level down")])
    indexes = [read_index(each) for each in folders]
    if problems := [problem for index in indexes for problem in _find_problems(index)]:
        raise DataError(problems)
    return indexes


def _find_problems(index: SetIndex) -> Iterator[Problem]:
    damaged = list(find_damaged_files(index, checksums=True))
    yield from damaged
    if damaged:
        return
    ids_by_part: dict[str, list[int]] = {}
    for split, files in index.splits.items():
        for shard in files:
            yield from _find_shard_problems(index, shard)
            ids_by_part.setdefault("test" if split == "test" else "train", []).extend(
                load_file(index.path(shard))["ids"].tolist()
            )
    for part, ids in ids_by_part.items():
        if len(set(ids)) != len(ids):
            yield Problem(str(index.folder), f"{len(ids) - len(set(ids))} duplicate {part} samples")


def _find_shard_problems(index: SetIndex, shard: ShardFile) -> Iterator[Problem]:
    where, content = str(index.path(shard)), load_file(index.path(shard))
    images, labels = content["images"], content["labels"]
    if images.shape != (shard.samples, *index.shape) or images.dtype != np.uint8:
        yield Problem(
            where, f"images are {images.dtype} {images.shape}, expected uint8 {(shard.samples, *index.shape)}"
        )
    if labels.shape != (shard.samples,):
        yield Problem(where, f"{labels.shape[0]} labels, expected {shard.samples}")
    outside = labels[(labels < 0) | (labels >= len(index.classes))]
    if len(outside):
        yield Problem(where, f"label {outside[0]} is not between 0 and {len(index.classes) - 1}")
