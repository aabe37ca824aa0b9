"""Fixtures of all tests: checks for leaked processes, threads and files, and small data sets."""

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
from tests.helpers.leaks import TEST_ID, leaks_since, snapshot_processes, snapshot_resources
from tests.helpers.official import write_official
from tests.helpers.quick import is_quick, refuse_processes

settings.register_profile("fmfsd", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fmfsd")
SHARED_BY_FOLDER = ("slurm", "ssh", "sweeps")
"""Folders whose session fixtures are slow to set up: all their tests run in one process."""

os.environ[TEST_ID] = uuid.uuid4().hex
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # so that results do not depend on the machine


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Run the tests of one file in one process, and likewise those of a folder that shares a cluster or sweeps.

    xdist's own groups have no effect with pytest 9.2: xdist 3.8 writes them where pytest no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        return path.parts[1] if path.parts[1] in SHARED_BY_FOLDER else str(path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark quick tests and run them last, so that no process is idle at the end while another runs a long file."""
    for item in items:
        if is_quick(item):
            item.add_marker(pytest.mark.quick)
    items.sort(key=is_quick)


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """Use a temporary folder of this test process, whose leftovers are leaks, and a cache folder of this session.

    All test processes of the session share the cache.
    """
    base = tmp_path_factory.getbasetemp()
    cache = (base if worker_id == "master" else base.parent) / "cache"
    cache.mkdir(exist_ok=True, mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(own_temporary_folder: None) -> Iterator[None]:
    before = snapshot_resources()
    yield
    leaks = leaks_since(before, snapshot_resources)
    assert not leaks, "the test left behind:\n" + "\n".join(leaks)


@pytest.fixture
def processes() -> None:
    """Mark a test in a folder of quick tests as one that starts processes."""


@pytest.fixture
def charts_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw charts in the test process, for quick tests."""
    monkeypatch.setattr("fmfsd.report.charts.render.render_in_child", vega.render_charts)


@pytest.fixture(autouse=True)
def no_process_is_left(request: pytest.FixtureRequest, own_temporary_folder: None) -> Iterator[None]:
    """Fail a test that leaves a process running, and a quick test that starts one."""
    if is_quick(request.node):
        with refuse_processes() as leaks:
            yield
    else:
        before = snapshot_processes()
        yield
        leaks = leaks_since(before, snapshot_processes)
    assert not leaks, "started and not ended:\n" + "\n".join(leaks)


def quiet(what: str, done: int, total: int) -> None:
    """Ignore a progress report."""


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with a `cifar10` of 256 training and 64 test samples, also prepared with 32 held out."""
    root = tmp_path_factory.mktemp("tiny")
    source = write_official(root / "source", "cifar10", train=256, test=64)
    for shards in (64, 16, 6, 4):
        prepare(DataConfig(name="cifar10", root=str(root), shards=shards), source=source, fetch=False, report=quiet)
    prepare(DataConfig(name="cifar10", root=str(root), shards=16, valid=30), source=source, fetch=False, report=quiet)
    return root


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with `synthetic10`."""
    root = tmp_path_factory.mktemp("synthetic")
    prepare(DataConfig(name="synthetic10", root=str(root)), source=None, fetch=False, report=quiet)
    return root


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    """Return the folder with the real CIFAR sets in their official layouts."""
    folder = os.environ.get("FMFSD_CIFAR_DIR")
    if not folder:
        pytest.skip("FMFSD_CIFAR_DIR is not set: needs the official cifar-100-python/ and cifar-10-batches-py/")
    return Path(folder)
