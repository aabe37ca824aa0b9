"""Ray for one sweep: a private one on this machine that ends with us, or a cluster that is there."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from fmfsd.errors import CheckError
from launcher.resources import Resources

OBJECTS_BYTES = 100 << 20
"""Trials hand over small dictionaries only."""
LOOK_S = 1.0
_QUIET = {"log_to_driver": False, "logging_level": "ERROR"}


@contextmanager
def private_ray(folder: Path, offered: Resources, *, dashboard: bool) -> Iterator[None]:
    """Started and ended with this context, at ports of its own, with all its files in `folder`.

    Its token is where RAY_AUTH_TOKEN_PATH says.
    """
    ray.init(
        address="local",
        num_cpus=offered.cores,
        num_gpus=len(offered.gpus),
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=OBJECTS_BYTES,
        _temp_dir=str(folder),
        **_QUIET,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def existing_ray(address: str) -> Iterator[None]:
    """Nothing of it is ended but what we begin. CheckError if it can't be reached."""
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckError(f"--ray-address {address}: {first}") from error
    try:
        yield
    finally:
        ray.shutdown()


def machines() -> list[Resources]:
    """What each of Ray's nodes offers, as Ray has it."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [
        Resources(
            cores=int(each.get("CPU", 0)),
            gpus=tuple(map(str, range(int(each.get("GPU", 0))))),
            memory=int(each.get("memory", 0)),
        )
        for each in found
    ]


@contextmanager
def ending_if_ray_dies(last_word: Callable[[Exception], None]) -> Iterator[None]:
    """End this process once one of Ray's own processes that it has started is gone: Tune would wait for ever.

    `last_word` is told which.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(_own_processes(), ended, last_word), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _own_processes() -> dict[str, int]:
    """By what they are; none where Ray was there before."""
    node = ray._private.worker._global_node
    found = node.live_processes() if node is not None and node.is_head() else []
    return {name: process.pid for name, process in found if name in ("gcs_server", "raylet")}


def _watch(pids: dict[str, int], ended: threading.Event, last_word: Callable[[Exception], None]) -> None:
    while not ended.wait(LOOK_S):
        gone = [name for name, pid in pids.items() if not _lives(pid)]
        if gone and not ended.is_set():
            last_word(ChildProcessError(f"Ray's {gone[0]} was killed"))
            time.sleep(LOOK_S / 10)
            os.kill(os.getpid(), signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
