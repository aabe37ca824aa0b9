"""Ray for one sweep: a private one on this machine that ends with us, or a cluster that is there."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from fmfsd.errors import CheckError
from launcher.agent.resources import Resources
from launcher.tune.ray import start
from launcher.tune.ray.ray_worker_node import answers

LOOK_S = 1.0
START_S = 60.0
_OPTIONS = {
    "log_to_driver": False,
    "logging_level": "ERROR",
    "runtime_env": {"worker_process_setup_hook": "fmfsd.own_launcher.pin"},
}


@dataclass(frozen=True)
class Head:
    """Where a cluster of ours over several machines is to have its head, and how many machines it has with that."""

    address: str
    port: int
    machines: int


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
        object_store_memory=start.OBJECTS_BYTES,
        _temp_dir=str(folder),
        **_OPTIONS,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def head_of_a_cluster(folder: Path, head: Head, offered: Resources) -> Iterator[None]:
    """Of one that other machines join, which is waited for. CheckError if Ray does not start here."""
    process = start.start_head(head.address, head.port, offered, folder)
    try:
        deadline = time.monotonic() + START_S
        while not answers(head.address, head.port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise CheckError("Ray did not start here: the driver's log says why")
            time.sleep(LOOK_S / 10)
        ray.init(address=f"{head.address}:{head.port}", _node_ip_address=head.address, **_OPTIONS)
        _wait_for(head.machines)
        yield
    finally:
        ray.shutdown()
        start.end(process)


def _wait_for(count: int) -> None:
    """Machines; those that come later are of use then."""
    deadline = time.monotonic() + START_S
    while len(machines()) < count and time.monotonic() < deadline:
        time.sleep(LOOK_S / 10)


@contextmanager
def existing_ray(address: str) -> Iterator[None]:
    """Nothing of it is ended but what we begin. CheckError if it can't be reached."""
    try:
        ray.init(address=address, **_OPTIONS)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckError(f"--ray-address {address}: {first}") from error
    try:
        yield
    finally:
        ray.shutdown()


def machines() -> list[Resources]:
    """What each of Ray's machines offers, as Ray has it."""
    return [machine(node) for node in ray.nodes() if node["Alive"]]


def machine(node: Mapping[str, Any]) -> Resources:
    """Of one of `ray.nodes()`."""
    found = node["Resources"]
    gpus = tuple(map(str, range(int(found.get("GPU", 0)))))
    return Resources(cores=int(found.get("CPU", 0)), gpus=gpus, memory=int(found.get("memory", 0)))


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
    found = node.live_processes() if node is not None else []
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
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
