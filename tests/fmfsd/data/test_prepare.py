"""Preparation of sets as shards: complete or absent, prepared once, and verifiable."""

import hashlib
import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from fmfsd.config import DataConfig
from fmfsd.config.load import load_data_config
from fmfsd.data.cifar.official_files import OFFICIAL
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import SetIndex, find_damaged_files, read_index
from fmfsd.data.shards.verify import verify_sets
from fmfsd.data.sources import read_set
from fmfsd.errors import CheckError, DataError
from fmfsd.system.atomic_files import sha256
from tests.conftest import quiet
from tests.helpers.official import official_contents, write_official
from tests.helpers.workers import _context as processes


def make(root: Path, *, name: str = "cifar10", source: Path | None = None, seed: int = 0, **data: Any) -> SetIndex:
    config = load_data_config(name=name, root=str(root), **data)
    return prepare(config, source=source, fetch=False, seed=seed, report=quiet)


def ids(index: SetIndex, split: str) -> list[list[int]]:
    return [load_file(index.path(shard))["ids"].tolist() for shard in index.splits[split]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("source"), "cifar10", train=330, test=70)


def test_shards_contain_every_sample_once_and_their_sizes_differ_by_at_most_one(source: Path, tmp_path: Path) -> None:
    index = make(tmp_path, source=source)
    shards = ids(index, "train")
    assert sorted(number for shard in shards for number in shard) == list(range(330))
    assert {len(shard) for shard in shards} == {5, 6}
    assert sorted(number for shard in ids(index, "test") for number in shard) == list(range(70))
    assert index.num_samples("train") == 330


def test_shards_contain_the_images_of_the_source(source: Path, tmp_path: Path) -> None:
    index, raw = make(tmp_path, source=source), read_set("cifar10", source)
    assert isinstance(raw.train.images, np.ndarray)
    for shard in index.splits["train"]:
        content = load_file(index.path(shard))
        assert np.array_equal(content["images"], raw.train.images[content["ids"]])
        assert np.array_equal(content["labels"], raw.train.labels[content["ids"]])


def test_held_out_samples_are_balanced_disjoint_and_chosen_by_the_seed(source: Path, tmp_path: Path) -> None:
    index = make(tmp_path / "a", source=source, valid=50)
    assert index.folder.name == "cifar10-valid50"
    valid = {number for shard in ids(index, "valid") for number in shard}
    train = {number for shard in ids(index, "train") for number in shard}
    assert len(valid) == 50
    assert valid | train == set(range(330))
    labels = read_set("cifar10", source).train.labels
    assert np.bincount(labels[list(valid)]).tolist() == [5] * 10
    again, other = (make(tmp_path / name, source=source, valid=50, seed=seed) for name, seed in (("b", 0), ("c", 1)))
    assert ids(again, "valid") == ids(index, "valid")
    assert ids(other, "valid") != ids(index, "valid")


def test_preparing_again_changes_nothing(source: Path, tmp_path: Path) -> None:
    index = make(tmp_path, source=source)
    before = {path: path.stat().st_mtime_ns for path in index.folder.iterdir()}
    assert make(tmp_path, source=source) == index
    assert {path: path.stat().st_mtime_ns for path in index.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"valid": 330}, r"class \d has 33 samples, too few to hold out 33 of them"),
        (
            {"shards": 331},
            "--shards 331: more than the 330 training images: use --shards 256, and set data.shards",
        ),
    ],
)
def test_a_set_that_is_too_small_is_an_error_and_leaves_no_files(
    data: dict[str, Any], expected: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=expected):
        make(tmp_path, source=source, **data)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_source_that_does_not_exist_is_reported(source: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match=r"^/nowhere/at/all: does not exist: give the folder of the images"):
            make(tmp_path, source=Path("/nowhere/at/all"))
        make(tmp_path, source=source)


def test_a_test_set_that_is_part_of_the_training_set_is_an_error(tmp_path: Path) -> None:
    content = official_contents("cifar100", train=256, test=64)["train"]
    same_images = write_official(tmp_path / "copied", "cifar100", changes={"test": content})
    part = {**content, "data": content["data"][:100], "fine_labels": content["fine_labels"][:100]}
    fewer_images = write_official(tmp_path / "parted", "cifar100", changes={"test": part})
    for source in (same_images, fewer_images):
        with pytest.raises(
            DataError, match="every test image is a training image too: use different images for this split"
        ):
            make(tmp_path, name="cifar100", source=source)
    assert not (tmp_path / "cifar100").exists()
    overlapping = {**part, "data": np.concatenate([part["data"][:-1], part["data"][-1:] ^ 1])}
    make(tmp_path, name="cifar100", source=write_official(tmp_path / "few", "cifar100", changes={"test": overlapping}))


def test_a_test_image_among_the_held_out_training_images_is_an_error(tmp_path: Path) -> None:
    content = official_contents("cifar10", train=320, test=64)
    copies = content["data_batch_1"]
    with pytest.raises(DataError, match="every test image is a training image too"):
        make(
            tmp_path,
            source=write_official(tmp_path / "x", "cifar10", train=320, changes={"test_batch": copies}),
            valid=100,
        )


def _prepare_in_process(root: Path, source: Path) -> None:
    make(root, source=source)


@pytest.mark.usefixtures("processes")
def test_concurrent_processes_prepare_one_set(source: Path, tmp_path: Path) -> None:
    workers = [processes.Process(target=_prepare_in_process, args=(tmp_path, source)) for _ in range(4)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(60)
    assert [process.exitcode for process in workers] == [0] * 4
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["cifar10"]
    verify_sets(tmp_path)


@pytest.mark.usefixtures("processes")
def test_a_killed_preparation_leaves_no_set_and_does_not_block_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fmfsd", "data", "prepare", "synthetic10", "--out", str(tmp_path)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".synthetic10.*/synthetic10/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "synthetic10").exists()
    assert list(tmp_path.glob(".synthetic10.*/"))
    subprocess.run(command, check=True, capture_output=True)
    verify_sets(tmp_path)
    assert not list(tmp_path.glob(".synthetic10.*/"))


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "missing"])
def test_a_damaged_shard_is_named(damage: str, source: Path, tmp_path: Path) -> None:
    index = make(tmp_path, source=source)
    path = index.path(index.splits["train"][7])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped byte" else content[:-1])
    (problem,) = find_damaged_files(index, checksums=True)
    assert "train-0007.safetensors" in problem.where
    assert {"flipped byte": "damaged: SHA-256", "truncated": "bytes, expected", "missing": "missing"}[
        damage
    ] in problem.message
    with pytest.raises(DataError, match="train-0007"):
        verify_sets(tmp_path)
    with pytest.raises(DataError, match="train-0007"):
        make(tmp_path, source=source)


INDEX_DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "no json": (lambda text: text[:-10], "not an index of a prepared set"),
    "other format": (lambda text: text.replace('"format": 1', '"format": 9'), "its format is not 1"),
    "path out of the folder": (
        lambda text: text.replace("train-0003", "../train-0003"),
        "splits.train.3.name: String should match",
    ),
    "absolute path": (lambda text: text.replace("train-0003", "/etc/passwd"), "name: String should match"),
    "text for a number": (lambda text: text.replace('"samples": 6', '"samples": "6"', 1), "samples: Input should be"),
    "no shards": (lambda text: text.replace('"shards": 64', '"shards": 0'), "shards: Input should be greater than 0"),
    "no sum": (lambda text: text.replace('"sha256": "', '"sha256": "x', 1), "sha256: String should match"),
    "source of nothing": (lambda text: text.replace('"official": false', '"x": 1', 1), "sources.0"),
    "class count": (lambda text: text.replace('"class9"', '"class9", "class10"'), "does not describe a known data set"),
    "image size": (lambda text: text.replace("32", "64", 2), "does not describe a known data set"),
    "deep": (lambda _: "[" * 100_000, "not an index of a prepared set"),
    "shard count": (lambda text: text.replace('"shards": 64', '"shards": 32'), "split train has 64 files, expected 32"),
    "unknown split": (lambda text: text.replace('"test": [', '"testt": ['), "split testt has 64 files|only the splits"),
    "sizes": (lambda text: text.replace('"samples": 6,', '"samples": 9,', 1), "differ by more than one"),
    "list": (lambda _: "[]", "expected a JSON object, found list"),
    "unknown field": (
        lambda text: text.replace('"name": "cifar10"', '"name": "cifar10", "x": 1', 1),
        "x: Unexpected keyword argument",
    ),
}


@pytest.mark.parametrize("case", INDEX_DAMAGE)
def test_a_damaged_index_is_named(case: str, source: Path, tmp_path: Path) -> None:
    index = make(tmp_path, source=source)
    change, expected = INDEX_DAMAGE[case]
    path = index.folder / "index.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=expected):
        read_index(index.folder)


def test_a_folder_without_an_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.json: missing"):
        read_index(tmp_path)
    with pytest.raises(DataError, match="has no prepared set"):
        verify_sets(tmp_path)


def test_verify_checks_labels_and_ids(source: Path, tmp_path: Path) -> None:
    index = make(tmp_path, source=source)
    shard, path = index.splits["train"][3], index.folder / "index.json"
    arrays = load_file(index.path(shard))
    arrays["labels"][2] = 10
    index.path(shard).write_bytes(save(arrays))
    text = path.read_text().replace(shard.sha256, sha256(index.path(shard)))
    path.write_text(text)
    with pytest.raises(DataError, match="label 10 is not between 0 and 9"):
        verify_sets(index.folder)


@contextmanager
def run_web_server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Run a web server on loopback; yield its address and the list of requested paths."""
    requested_paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            requested_paths.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested_paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_missing_set_is_fetched_once_into_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    write_official(tmp_path / "files", "cifar10")
    archive = tmp_path / "web" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "files" / "cifar-10-batches-py", "cifar-10-batches-py")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    config = DataConfig(name="cifar10", root=str(tmp_path / "root"))
    with run_web_server(archive.parent) as (address, requested_paths):
        mirror = replace(OFFICIAL["cifar10"], url=f"{address}/{archive.name}", archive_md5=md5)
        monkeypatch.setitem(OFFICIAL, "cifar10", mirror)
        for _ in range(2):
            assert prepare(config, source=None, fetch=True, report=quiet).num_samples("train") == 256
    assert requested_paths == ["/cifar-10-python.tar.gz"]


def test_without_network_the_error_names_the_folder_for_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = replace(OFFICIAL["cifar100"], url="http://127.0.0.1:9/cifar-100-python.tar.gz")
    monkeypatch.setitem(OFFICIAL, "cifar100", unreachable)
    with pytest.raises(CheckError, match=rf"put cifar-100-python.tar.gz or cifar-100-python/ into {tmp_path}.*smoke"):
        prepare(DataConfig(name="cifar100", root=str(tmp_path)), source=None, fetch=True, report=quiet)


def test_real_cifar_100_is_bit_exact(cifar_dir: Path, tmp_path: Path) -> None:
    index = make(tmp_path, name="cifar100", source=cifar_dir, valid=5200)
    assert all(source.official for source in index.sources)
    assert (index.num_samples("train"), index.num_samples("valid"), index.num_samples("test")) == (
        44_800,
        5_200,
        10_000,
    )
    assert {shard.samples for shard in index.splits["train"]} == {700}
    assert index.classes[:3] == ("apple", "aquarium_fish", "baby")
    verify_sets(tmp_path)


def test_the_real_cifar_10_layout_is_read(cifar_dir: Path, tmp_path: Path) -> None:
    index = make(tmp_path, name="cifar10", source=cifar_dir)
    assert (index.num_samples("train"), index.num_samples("test")) == (50_000, 10_000)
    assert {shard.samples for shard in index.splits["train"]} == {781, 782}
    assert index.classes[0] == "airplane"


def test_a_folder_without_a_prepared_set_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(DataError, match="missing, so this is no prepared set: delete the folder, or choose another"):
        make(tmp_path, source=source)
    assert list((tmp_path / "cifar10").iterdir()) == []
