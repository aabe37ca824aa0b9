"""The official CIFAR files: reading them, and refusing malicious or damaged pickles without executing anything."""

import io
import os
import pickle
import tarfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmfsd.data.cifar.official_files import OFFICIAL
from fmfsd.data.cifar.restricted_pickle import load_arrays
from fmfsd.data.sources import read_set
from fmfsd.errors import DataError
from tests.helpers.official import official_contents, write_official

OLD_CIFAR = (  # written by Python 2: {'data': array([[1, 2], [3, 4]], uint8), 'fine_labels': [7, 8]}
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
    b"q\x05(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
    b"J\xff\xff\xff\xffK\x00tb\x89U\x04\x01\x02\x03\x04tbU\x0bfine_labelsq\x08]q\x09(K\x07K\x08eu."
)


class CallOnLoad:
    """An object whose pickle calls `function` when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def archive(folder: Path, name: str, *, outside: str = "") -> Path:
    """Create a folder with only the set's archive; `outside` adds a member that would escape on extraction."""
    write_official(folder / "files", name)
    official = OFFICIAL[name]
    target = folder / "packed" / official.archive
    target.parent.mkdir()
    with tarfile.open(target, "w:gz") as tar:
        tar.add(folder / "files" / official.folder, official.folder)
        if outside:
            member = tarfile.TarInfo(outside)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"out"))
    return target.parent


def test_a_pickle_of_python_2_is_read() -> None:
    content = load_arrays(OLD_CIFAR, "train")
    assert content["fine_labels"] == [7, 8]
    assert np.array_equal(content["data"], np.array([[1, 2], [3, 4]], np.uint8))


def test_arrays_of_the_installed_numpy_are_read() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = load_arrays(pickle.dumps({"data": array, "labels": [1, 2]}, protocol=2), "x")
    assert np.array_equal(content["data"], array)


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize("dtype", ["u1", "i8", ">i8", "<u2", "i4"])
def test_integer_arrays_of_any_protocol_and_byte_order_are_read(dtype: str, protocol: int) -> None:
    rows = np.arange(12).astype(dtype).reshape(3, 4)
    written = {"rows": rows, "columns": np.asfortranarray(rows), "parts": rows[:, ::2]}
    content = load_arrays(pickle.dumps(written, protocol=protocol), "x")
    for name, array in written.items():
        assert np.array_equal(content[name], array)
        assert content[name].dtype == array.dtype


def test_module_names_of_numpy_1_are_accepted(tmp_path: Path) -> None:
    written = pickle.dumps({"data": np.arange(4, dtype=np.uint8)}, protocol=5)
    assert b"numpy._core.numeric" in written
    old = written.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
    old = old[:3] + (int.from_bytes(old[3:11], "little") - 1).to_bytes(8, "little") + old[11:]
    assert load_arrays(old, "x")["data"].tolist() == [0, 1, 2, 3]


def repickle(content: dict[str, Any], protocol: int = 5) -> bytes:
    """Pickle as Python 3 does after reading Python 2's files with encoding="bytes": labels as arrays, columns first."""

    def as_bytes(value: Any) -> Any:
        if isinstance(value, list):
            return np.array(value) if isinstance(value[0], int) else [name.encode() for name in value]
        return np.asfortranarray(value) if isinstance(value, np.ndarray) else value.encode()

    return pickle.dumps({key.encode(): as_bytes(value) for key, value in content.items()}, protocol=protocol)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_set_that_python_3_has_repickled_is_the_same(name: str, tmp_path: Path) -> None:
    contents = official_contents(name, train=250, test=50)
    changes = {file: repickle(content) for file, content in contents.items()}
    sets = [
        read_set(name, write_official(tmp_path / str(number), name, train=250, test=50, changes=each))
        for number, each in enumerate((changes, {}))
    ]
    assert sets[0].classes == sets[1].classes
    for part in ("train", "test"):
        one, other = (getattr(each, part) for each in sets)
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    "payload",
    [
        CallOnLoad(os.system, "touch marker"),
        CallOnLoad(eval, "open('marker', 'w')"),
        CallOnLoad(getattr, "text", "upper"),
        CallOnLoad(open, "marker", "w"),
        CallOnLoad(np.load, "marker"),
        OrderedDict(a=1),
        Path("marker"),
        np.array([object()], dtype=object),
        np.array([1.5]),
        np.array(["text"]),
        np.zeros(2, np.complex64),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "u1")]),
        np.ma.masked_array([1, 2]),
        np.uint8(3),
    ],
    ids=lambda payload: type(payload).__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_with_any_other_global_is_an_error(
    payload: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="train: can't be read"):
        load_arrays(pickle.dumps({"data": payload}, protocol=protocol), "train")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"garbage", OLD_CIFAR[:-20], b"\x80\x02]q\x01.", b"\x80\x02X\xff\xff\xff\x7f"]
)
def test_a_damaged_pickle_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match="^train: "):
        load_arrays(data, "train")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_source_may_be_the_folder_the_archive_or_their_parent(name: str, tmp_path: Path) -> None:
    official = OFFICIAL[name]
    packed = archive(tmp_path, name)
    sources = [tmp_path / "files", tmp_path / "files" / official.folder, packed, packed / official.archive]
    sets = [read_set(name, source) for source in sources]
    contents = official_contents(name, train=256, test=64)
    expected = np.concatenate([contents[file]["data"] for file in official.train]).reshape(-1, 3, 32, 32)
    for each in sets:
        assert isinstance(each.train.images, np.ndarray)
        assert np.array_equal(each.train.images, expected)
        assert np.array_equal(each.train.ids, np.arange(256))
        assert len(each.test) == 64
        assert each.classes[1] == "class1"


def test_an_archive_member_outside_of_the_folder_is_never_extracted(tmp_path: Path) -> None:
    packed = archive(tmp_path, "cifar10", outside="../escaped")
    read_set("cifar10", packed)
    assert not list(tmp_path.rglob("escaped"))


def test_checksums_that_are_not_official_are_recorded_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = read_set("cifar100", write_official(tmp_path, "cifar100"))
    assert [source.official for source in result.sources] == [False] * 3
    assert "is not the official 16019d7e3df5f24257cddd939b257f8d" in caplog.text


def damaged_files(name: str, case: str) -> dict[str, Any]:
    """Return the damaged contents by file name."""
    contents = official_contents(name, train=256, test=64)
    train = next(iter(OFFICIAL[name].train))
    key = OFFICIAL[name].label_key
    whole = contents[train]
    meta = next(iter(OFFICIAL[name].meta))
    cases: dict[str, dict[str, Any]] = {
        "label out of range": {train: {**whole, key: [*whole[key][:-1], 100]}},
        "negative label": {train: {**whole, key: [-1, *whole[key][1:]]}},
        "fewer labels": {train: {**whole, key: whole[key][:-1]}},
        "labels of text": {train: {**whole, key: ["a"] * len(whole[key])}},
        "other image size": {train: {**whole, "data": whole["data"][:, :-1]}},
        "other type": {train: {**whole, "data": whole["data"].astype(np.int16)}},
        "labels in pairs": {train: {**whole, key: np.zeros((len(whole[key]), 2), np.int64)}},
        "no images": {train: {key: whole[key]}},
        "truncated": {train: pickle.dumps(whole, protocol=2)[:-100]},
        "empty": {train: b""},
        "class count": {meta: {OFFICIAL[name].names_key: ["one", "two"]}},
        "no class names": {meta: {}},
        "a list": {train: [1, 2]},
    }
    return cases[case]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("label out of range", r"\[\d+\] is 100, expected 0 to (9|99)"),
        ("negative label", r"\[0\] is -1, expected 0 to"),
        ("fewer labels", r"\d+ images but \d+ labels"),
        ("labels of text", "expected a list of whole numbers"),
        ("other image size", r"expected rows of 3072 bytes, found an array of uint8 of shape \(\d+, 3071\)"),
        ("other type", r"expected rows of 3072 bytes, found an array of int16 of shape \(\d+, 3072\)"),
        ("labels in pairs", "expected a list of whole numbers"),
        ("no images", "'data': expected rows of 3072 bytes, found a NoneType"),
        ("truncated", "can't be read"),
        ("empty", "can't be read"),
        ("class count", "expected the names of 100?0? classes, found 2 names"),
        ("no class names", "found no list of names"),
        ("a list", "contains a list, expected a dictionary"),
    ],
)
def test_damaged_files_are_reported_with_the_problem(name: str, case: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        read_set(name, write_official(tmp_path, name, changes=damaged_files(name, case)))
    assert OFFICIAL[name].folder in str(caught.value)


def test_cifar_10_instead_of_cifar_100_is_an_error(tmp_path: Path) -> None:
    ten = official_contents("cifar10", train=250, test=50)
    with pytest.raises(
        DataError, match="'fine_labels': expected a list of whole numbers.*check that it is the right data set"
    ):
        read_set("cifar100", write_official(tmp_path, "cifar100", changes={"train": ten["data_batch_1"]}))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has neither cifar-100-python/ nor cifar-100-python\.tar\.gz"):
        read_set("cifar100", tmp_path)
    write_official(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 missing"):
        read_set("cifar10", tmp_path)


def test_a_truncated_archive_is_an_error(tmp_path: Path) -> None:
    packed = archive(tmp_path, "cifar100") / "cifar-100-python.tar.gz"
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(DataError, match="damaged archive|missing"):
        read_set("cifar100", packed.parent)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"no archive", "text, not an archive"), (b"<!doctype html>", "an HTML page, not an archive"), (b"", "0 bytes")],
)
def test_the_error_for_a_file_that_is_no_archive_names_its_type(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"cifar-100-python\.tar\.gz: {expected}.*; download it again from https://www\.cs\.tor"
    ):
        read_set("cifar100", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "cifar-100-python.tar",
        "cifar-100-python (1).tar.gz",
        "cifar-100-python(2).tar.gz",
        "cifar-100-python.tar (1).gz",
        "cifar-100-python.tgz",
        "cifar-100-python (1).tar",
    ],
)
def test_archives_with_the_names_that_browsers_give_are_found(name: str, tmp_path: Path) -> None:
    write_official(tmp_path / "files", "cifar100")
    (tmp_path / "downloads").mkdir()
    with tarfile.open(tmp_path / "downloads" / name, "w" if name.endswith(".tar") else "w:gz") as tar:
        tar.add(tmp_path / "files" / "cifar-100-python", "cifar-100-python")
    assert len(read_set("cifar100", tmp_path / "downloads").train) == 256


@pytest.mark.parametrize(
    "name", ["cifar-100-python.tar.gz.part", "cifar-100-python.tar.gz.crdownload", "cifar-100.tar"]
)
def test_files_with_other_names_are_not_used_as_archives(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="has neither"):
        read_set("cifar100", tmp_path)


def test_an_html_page_instead_of_a_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-100-python/train: can't be read: .* \(the file is an HTML page\)"):
        read_set("cifar100", write_official(tmp_path, "cifar100", changes={"train": b"<html>"}))


def nested(depth: int) -> tuple[Any, ...]:
    """Return a tuple whose pickle is small, but whose hash takes 2**depth steps."""
    inside: tuple[Any, ...] = ()
    for _ in range(depth):
        inside = (inside, inside)
    return inside


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pickle.dumps({"data": {7: 1}}, protocol=2), "a key of type int"),
        (b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__U\x00s\x86b.", "a state of something that is not an array"),
        (b"\x80\x05\x96" + (1 << 45).to_bytes(8, "little") + b"x.", "can't be read: EOFError"),
        (b"\x80\x02}U\x04datacnumpy\nndarray\n)\x81s.", "can't be read"),
        (b"\x80\x02}(" + pickle.dumps(nested(64), protocol=2)[2:-1] + b"K\x01u.", "a key of type tuple"),
        (b"\x80\x04\x8f(" + pickle.dumps(nested(64), protocol=4)[11:-1] + b"\x90.", "it holds a set"),
        (b"(I1\nI2\nd.", "a dictionary in the form of protocol 0"),
    ],
)
def test_a_pickle_cannot_make_us_hash_modify_or_allocate_anything(data: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load_arrays(data, "x")


@given(noise=st.binary(min_size=1, max_size=12), position=st.integers(0, 600), removed=st.integers(0, 12))
def test_random_changes_of_a_pickle_are_at_worst_a_data_error(noise: bytes, position: int, removed: int) -> None:
    whole = repickle({"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 3], "names": ["a", "b"]})
    start = position % len(whole)
    with suppress(DataError):
        load_arrays(whole[:start] + noise + whole[start + removed :], "x")


def test_a_long_name_is_truncated_in_the_message() -> None:
    with pytest.raises(DataError, match="it names x{80}, which") as caught:
        load_arrays(b"c" + b"x" * 100_000 + b"\nb\n.", "file")
    assert len(str(caught.value)) < 200
