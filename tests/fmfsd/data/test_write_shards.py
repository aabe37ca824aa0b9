"""Writing of shards with images decoded on all cores: in order, with little memory, for any number of cores."""

import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from fmfsd.config.load import load_data_config
from fmfsd.data.image_files.thread_map import WINDOW, map_in_threads
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.shard_writer import write_shard
from tests.helpers.folders import prepare_folders, write_folders


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=3)


def with_cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))


def test_results_are_in_order_even_if_later_ones_are_ready_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cores(monkeypatch, 2)
    later = threading.Event()

    def wait_for_the_second(number: int) -> int:
        if number == 0:
            assert later.wait(30), "the second item was not started before the first one had ended"
        later.set()
        return number

    assert list(map_in_threads(wait_for_the_second, range(50))) == list(range(50))


def test_only_a_bounded_number_of_items_is_processed_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cores(monkeypatch, 3)
    started = []

    def items() -> Iterator[int]:
        for number in range(10**9):
            started.append(number)
            yield number

    results = map_in_threads(lambda number: number, items())
    assert list(islice(results, 100)) == list(range(100))
    results.close()
    assert len(started) <= 100 + 3 * WINDOW


def test_an_error_is_raised_at_its_position() -> None:
    results = map_in_threads(lambda number: 1 // (5 - number), range(100))
    assert list(islice(results, 5)) == [0, 0, 0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_shard_equals_that_of_safetensors_byte_for_byte(count: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 3, 8, 8), np.uint8)
    labels, ids = random.integers(0, 10, (2, count))
    shard = write_shard(tmp_path / "x.safetensors", (image.tobytes() for image in images), labels, ids, (3, 8, 8))
    expected = save({"images": images, "labels": labels, "ids": ids})
    assert (tmp_path / "x.safetensors").read_bytes() == expected
    assert (shard.samples, shard.bytes) == (count, len(expected))


def test_the_set_is_the_same_for_any_number_of_cores(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = []
    for cores in (1, 5):
        with_cores(monkeypatch, cores)
        splits.append(prepare_folders(tmp_path / str(cores), source).splits)
    assert splits[0] == splits[1]


def test_progress_is_counted_in_images(source: Path, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    data = load_data_config(name="folder", root=str(tmp_path), shards=4)
    prepare(data, source=source, fetch=False, report=lambda *each: reports.append(each))
    for stage in ("checking the types of files", "preparing folder"):
        assert [each for each in reports if each[0] == stage] == [(stage, done, 28) for done in range(1, 29)]
