"""Fixtures of all tests: a check that nothing is left behind, and small data sets."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from fmfsd.config import DataConfig
from fmfsd.data.prepare import prepare
from fmfsd.report.charts import vega
from tests.helpers.leaks import TEST_ID, leaks_since, running_processes, surroundings
from tests.helpers.official import write_official
from tests.helpers.quick import is_quick, refused_processes

settings.register_profile("fmfsd", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fmfsd")
SHARED_BY_FOLDER = ("slurm", "ssh", "sweeps")
"""Folders whose session fixtures take long, and so are set up by one process for all their tests."""

os.environ[TEST_ID] = uuid.uuid4().hex
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # what is tested does not depend on the machine


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps the tests of a file in one process, and those of folders that share a cluster or sweeps.

    xdist's own groups have no effect with pytest 9.2: xdist 3.8 writes them where pytest no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        return path.parts[1] if path.parts[1] in SHARED_BY_FOLDER else str(path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark quick tests, and run them last, so that no process waits at the end for another one's long file."""
    for item in items:
        if is_quick(item):
            item.add_marker(pytest.mark.quick)
    items.sort(key=is_quick)


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """For us and all that we start, so that what is left in it is ours; and a cache that this session alone has, the
    processes that run its tests together."""
    own = tmp_path_factory.getbasetemp()
    cache = (own if worker_id == "master" else own.parent) / "cache"
    cache.mkdir(exist_ok=True, mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(own_temporary_folder: None) -> Iterator[None]:
    before = surroundings()
    yield
    left = leaks_since(before, surroundings)
    assert not left, "the test left behind:\n" + "\n".join(left)


@pytest.fixture
def processes() -> None:
    """Requested by tests next to quick ones that start processes."""


@pytest.fixture
def charts_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws charts in the test's own process, for quick tests."""
    monkeypatch.setattr("fmfsd.report.charts.render.draw_in_child", vega.draw)


@pytest.fixture(autouse=True)
def no_process_is_left(request: pytest.FixtureRequest, own_temporary_folder: None) -> Iterator[None]:
    """Quick tests start none at all."""
    if is_quick(request.node):
        with refused_processes() as left:
            yield
    else:
        before = running_processes()
        yield
        left = leaks_since(before, running_processes)
    assert not left, "started and not ended:\n" + "\n".join(left)


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
