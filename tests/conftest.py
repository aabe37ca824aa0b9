"""Fixtures of all tests: a check that nothing is left behind, and small data sets."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fmfsd.config import DataConfig
from fmfsd.data.prepare import prepare
from tests.helpers.leaks import TEST_ID, Surroundings, leaks_since
from tests.helpers.official import write_official

settings.register_profile("fmfsd", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fmfsd")
os.environ[TEST_ID] = uuid.uuid4().hex
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # what is tested does not depend on the machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Short tests last: of several processes none waits for another's long file at the end."""
    items.sort(key=lambda item: item.path.parent.name in ("fmfsd", "launcher"))


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For us and all that we start, so that what is left in it is ours. A cache is one that nobody else has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(own_temporary_folder: None) -> Iterator[None]:
    before = Surroundings.now()
    yield
    left = leaks_since(before)
    assert not left, "the test left behind:\n" + "\n".join(left)


def quiet(what: str, done: int, total: int) -> None:
    """Reports no progress."""


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a `cifar10` of 256 training and 64 test samples, and a form of it with 32 held out."""
    root = tmp_path_factory.mktemp("tiny")
    source = write_official(root / "source", "cifar10", train=256, test=64)
    for shards in (64, 16, 6, 4):
        prepare(DataConfig(name="cifar10", root=str(root), shards=shards), source=source, fetch=False, report=quiet)
    prepare(DataConfig(name="cifar10", root=str(root), shards=16, valid=30), source=source, fetch=False, report=quiet)
    return root


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `synthetic10`."""
    root = tmp_path_factory.mktemp("synthetic")
    prepare(DataConfig(name="synthetic10", root=str(root)), source=None, fetch=False, report=quiet)
    return root


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    """The real CIFAR sets in their official layouts."""
    folder = os.environ.get("FMFSD_CIFAR_DIR")
    if not folder:
        pytest.skip("FMFSD_CIFAR_DIR is not set: needs the official cifar-100-python/ and cifar-10-batches-py/")
    return Path(folder)
