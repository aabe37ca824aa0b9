"""Splits a data set into shards, and writes them with their index."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from fmfsd.config.schema import DataConfig
from fmfsd.data.hold_out import Splits, split_set
from fmfsd.data.image_files.image_reader import ImageReader
from fmfsd.data.image_files.source_files import FileState, to_source, write_record
from fmfsd.data.shards.index import SetIndex, ShardFile
from fmfsd.data.shards.shard_writer import write_shard
from fmfsd.data.unsharded_set import FileImages, RawSet, Samples
from fmfsd.errors import DataError, Problem
from fmfsd.terminal import ProgressCallback

log = logging.getLogger(__name__)
MAX_LISTED = 50
"""Maximum number of damaged files that are listed."""

Files = dict[str, list[ShardFile]]


@dataclass(frozen=True)
class SetWriter:
    """Writes a set as `data` describes it; `seed` chooses the held-out samples."""

    data: DataConfig
    seed: int
    skip_damaged: bool
    report: ProgressCallback

    def write(self, raw: RawSet, folder: Path) -> None:
        """Write `raw` to `folder`. Damaged files raise DataError or, with `skip_damaged`, are left out."""
        reader, raw = ImageReader(), self._drop_damaged(raw, raw.damaged)
        files = self._write_shards(raw, folder, reader)
        while reader.damaged:
            raw, reader.damaged = self._drop_damaged(raw, reader.damaged), {}
            files = self._write_shards(raw, folder, reader)
        _require_other_images(raw, reader.states)
        self._write_index(raw, folder, files, reader.states)

    def _drop_damaged(self, raw: RawSet, damaged: Mapping[Path, Problem]) -> RawSet:
        if not damaged:
            return raw
        problems = summarise_damaged(damaged)
        if not self.skip_damaged:
            raise DataError([*problems, Problem("", "replace or remove these files, or skip them: --skip-damaged")])
        log.warning("damaged images skipped: %d\n%s", len(damaged), "\n".join(map(str, problems)))
        return raw.drop(damaged)

    def _build_splits(self, raw: RawSet) -> Splits:
        """Return the samples of each split. Raises DataError for fewer training samples than shards."""
        splits, shards = split_set(raw, self.data.valid, self.seed), self.data.shards
        if (count := len(splits["train"])) < shards:
            most = 1 << (count.bit_length() - 1)
            message = f"more than the {count} training images: use --shards {most}, and set data.shards to {most}"
            raise DataError([Problem(f"--shards {shards}", message)])
        return splits

    def _write_shards(self, raw: RawSet, folder: Path, reader: ImageReader) -> Files:
        splits = self._build_splits(raw)
        parts, files = list(_assign_shards(splits, self.data.shards)), {name: list[ShardFile]() for name in splits}
        with closing(reader.read([samples.images for _, _, samples in parts])) as images:
            counted = self._report_each(images, sum(map(len, splits.values())))
            for name, shard, samples in parts:
                own, path = islice(counted, len(samples)), folder / f"{name}-{shard:04d}.safetensors"
                files[name].append(write_shard(path, own, samples.labels, samples.ids, raw.shape))
        return files

    def _report_each(self, images: Iterable[bytes], total: int) -> Iterator[bytes]:
        for done, image in enumerate(images, 1):
            self.report(f"preparing {self.data.name}", done, total)
            yield image

    def _write_index(self, raw: RawSet, folder: Path, files: Files, read: Mapping[Path, FileState]) -> None:
        """Write the index and, for image folders, the record of the files that were `read`."""
        data, sources = self.data, raw.sources
        if raw.root is not None:
            states = {str(path.relative_to(raw.root)): state for path, state in read.items()}
            write_record(folder, states)
            sources = (to_source(states),)
        splits = {name: tuple(shards) for name, shards in files.items()}
        index = SetIndex(folder, data.name, raw.shape, raw.classes, data.shards, data.valid, self.seed, splits)
        replace(index, sources=sources, skipped=raw.skipped).write()


def summarise_damaged(damaged: Mapping[Path, Problem]) -> list[Problem]:
    """Return the first `damaged` files by path, and the number of further ones."""
    problems = [damaged[path] for path in sorted(damaged)]
    more = [Problem("", f"and {len(problems) - MAX_LISTED} more")] if len(problems) > MAX_LISTED else []
    return [*problems[:MAX_LISTED], *more]


def _require_other_images(raw: RawSet, states: Mapping[Path, FileState]) -> None:
    """Raise DataError if all images of the validation or test split are training images too."""
    train = _hash_images(raw.train, states)
    for name, samples in (("validation", raw.valid), ("test", raw.test)):
        if samples is not None and _hash_images(samples, states) <= train:
            raise DataError(f"every {name} image is a training image too: use different images for this split")


def _hash_images(samples: Samples, states: Mapping[Path, FileState]) -> set[str | int]:
    """Return a hash of each image's content."""
    if isinstance(samples.images, FileImages):
        return {states[path].digest for path in samples.images.paths}
    return {hash(image.tobytes()) for image in samples.images}


def _assign_shards(splits: dict[str, Samples], shards: int) -> Iterator[tuple[str, int, Samples]]:
    """Yield (split, shard, its samples): sample i is in shard i modulo `shards`, so sizes differ by at most one."""
    for name, samples in splits.items():
        for shard in range(shards):
            yield name, shard, samples.take(np.arange(shard, len(samples), shards))
