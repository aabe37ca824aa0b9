"""Ray for one sweep: a private instance on this machine, the head of a private cluster, or an existing cluster."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from fmfsd.errors import CheckError
from launcher.agent.available_resources import Resources
from launcher.tune.ray import ray_start
from launcher.tune.ray.ray_worker_node import is_listening

POLL_S = 1.0
START_TIMEOUT_S = 60.0
_OPTIONS = {
    "log_to_driver": False,
    "logging_level": "ERROR",
    "runtime_env": {"worker_process_setup_hook": "fmfsd.own_launcher.pin_launcher"},
}


@dataclass(frozen=True)
class RayHead:
    """The address of the head of a private cluster, and the number of its machines, including the head."""

    address: str
    port: int
    machines: int


@contextmanager
def private_ray(folder: Path, resources: Resources, *, dashboard: bool) -> Iterator[None]:
    """Run Ray on this machine within this context, with free ports and all its files in `folder`.

    Ray reads its token from the file in RAY_AUTH_TOKEN_PATH.
    """
    ray.init(
        address="local",
        num_cpus=resources.cores,
        num_gpus=len(resources.gpus),
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=ray_start.OBJECT_STORE_BYTES,
        _temp_dir=str(folder),
        **_OPTIONS,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def cluster_head(folder: Path, head: RayHead, resources: Resources) -> Iterator[None]:
    """Run the head of a cluster within this context, and wait for the other machines.

    Raise CheckError if Ray does not start here.
    """
    process = ray_start.start_head(head.address, head.port, resources, folder)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_listening(head.address, head.port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise CheckError("Ray did not start on this machine: see the driver's log")
            time.sleep(POLL_S / 10)
        ray.init(address=f"{head.address}:{head.port}", _node_ip_address=head.address, **_OPTIONS)
        _wait_for_machines(head.machines)
        yield
    finally:
        ray.shutdown()
        ray_start.stop(process)


def _wait_for_machines(count: int) -> None:
    """Wait for `count` machines, for START_TIMEOUT_S at most; machines that join later are used then."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(list_alive_machines()) < count and time.monotonic() < deadline:
        time.sleep(POLL_S / 10)


@contextmanager
def existing_ray(address: str) -> Iterator[None]:
    """Connect to an existing cluster, which continues to run afterwards. Raise CheckError if it can not be reached."""
    try:
        ray.init(address=address, **_OPTIONS)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckError(f"--ray-address {address}: {first}") from error
    try:
        yield
    finally:
        ray.shutdown()


def list_alive_machines() -> list[Resources]:
    """Return the resources of each live machine, as Ray reports them."""
    return [parse_node_resources(node) for node in ray.nodes() if node["Alive"]]


def parse_node_resources(node: Mapping[str, Any]) -> Resources:
    """Return the resources of an entry of `ray.nodes()`."""
    resources = node["Resources"]
    gpus = tuple(map(str, range(int(resources.get("GPU", 0)))))
    return Resources(cores=int(resources.get("CPU", 0)), gpus=gpus, memory=int(resources.get("memory", 0)))


@contextmanager
def kill_if_ray_dies(report_crash: Callable[[Exception], None]) -> Iterator[None]:
    """Kill this process when one of the Ray processes that it started dies, since Tune would wait for ever.

    `report_crash` gets an error that names the dead process.
    """
    ended = threading.Event()
    watchdog = threading.Thread(target=_watch, args=(_ray_processes(), ended, report_crash), daemon=True)
    watchdog.start()
    try:
        yield
    finally:
        ended.set()
        watchdog.join()


def _ray_processes() -> dict[str, int]:
    """Return the pids of the Ray processes that this process started, by name; none for an existing cluster."""
    node = ray._private.worker._global_node
    processes = node.live_processes() if node is not None else []
    return {name: process.pid for name, process in processes if name in ("gcs_server", "raylet")}


def _watch(pids: dict[str, int], ended: threading.Event, report_crash: Callable[[Exception], None]) -> None:
    while not ended.wait(POLL_S):
        dead = [name for name, pid in pids.items() if not _is_alive(pid)]
        if dead and not ended.is_set():
            report_crash(ChildProcessError(f"Ray's {dead[0]} was killed"))
            time.sleep(POLL_S / 10)
            os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
