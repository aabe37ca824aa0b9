"""CPU affinity: each worker of a node runs on its own share of the cores."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmfsd.distributed.affinity import parse_cores, pin_to_cores, take_part
from fmfsd.distributed.world import World
from fmfsd.errors import ConfigError
from fmfsd.system.atomic_files import read_json
from fmfsd.worker import WorkerSettings
from tests.helpers.processes import wait_until
from tests.helpers.runs import make_run, tiny_config


def test_cores_are_parsed_in_linuxs_list_format() -> None:
    assert parse_cores("0-3,8") == (0, 1, 2, 3, 8)
    assert parse_cores("5,1, 1-2") == (5, 1, 2)
    assert parse_cores("all") == "all"
    assert WorkerSettings.from_environment({"FMFSD_CORES": "2"}).cores == (2,)
    assert WorkerSettings.from_environment({"FMFSD_CORES": ""}).cores is None


@pytest.mark.parametrize("text", ["some", "1-", "-1", "3-1", "1,,2", "1;2", "0-999999999"])
def test_an_invalid_list_of_cores_is_an_error(text: str) -> None:
    with pytest.raises(
        ConfigError, match="environment variable FMFSD_CORES: expected all, or cores as in 0-3,8, found"
    ):
        parse_cores(text)


@given(st.lists(st.integers(0, 9_999), unique=True, min_size=1), st.integers(1, 40))
def test_shares_differ_in_size_by_at_most_one_and_cover_all_cores(cores: list[int], count: int) -> None:
    shares = [take_part(cores, index, count) for index in range(count)]
    assert [core for share in shares for core in share] == cores
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [World(size=2, local_size=2), World(local_size=0)])
def test_the_affinity_stays_unchanged_without_enough_cores_or_a_known_number_of_workers(world: World) -> None:
    before = os.sched_getaffinity(0)
    pin_to_cores((min(before),), world)
    assert os.sched_getaffinity(0) == before


def test_an_error_of_the_kernel_is_logged_and_not_fatal(caplog: pytest.LogCaptureFixture) -> None:
    before = os.sched_getaffinity(0)
    pin_to_cores((9_999,), World())
    assert os.sched_getaffinity(0) == before
    assert "could not pin this worker to cores 9999: Invalid argument" in caplog.text


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("local_rank", [0, 1])
def test_a_worker_and_all_its_threads_run_on_its_share(local_rank: int, tiny_root: Path, tmp_path: Path) -> None:
    """Including threads that libraries start on import. The worker waits for a second one that is never started."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    run = make_run(tmp_path / "run", tiny_config(tiny_root))
    world = {
        "MASTER_ADDR": "127.0.0.1",
        "RANK": str(local_rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": "2",
    }
    options = {"FMFSD_CORES": "all", "FMFSD_INIT_METHOD": f"file://{tmp_path}/meet", "OPENBLAS_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fmfsd", "train", run.path, "--device", "cpu"],
        env={**os.environ, **world, **options},
        stderr=subprocess.DEVNULL,
    )
    try:
        path = run.rank_progress(local_rank)
        wait_until(lambda: path.exists() and read_json(path)["state"] == "connect", "the worker")
        threads = psutil.Process(process.pid).threads()
        used_cores = {core for thread in threads for core in os.sched_getaffinity(thread.id)}
    finally:
        process.kill()
        process.wait()
    assert len(threads) > 1
    assert used_cores == set(take_part(cores, local_rank, 2))
