"""A worker node of a sweep's private Ray cluster: joins the head, rejoins if Ray dies here, and ends with the head.

`python -m launcher.tune.ray.ray_worker_node ADDRESS PORT INTERFACE SCRATCH CORES GPUS`.
"""

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from launcher.agent.available_resources import Resources
from launcher.agent.network import find_source_address, interface_addresses
from launcher.tune.ray.ray_start import start_worker, stop

POLL_S = 0.5
HEAD_TIMEOUT_S = 120.0
"""Time for the head to start."""
SILENCE_TIMEOUT_S = 3.0
REJOIN_PAUSE_S = 2.0


def main(address: str, port: int, interface: str, folder: Path, resources: Resources) -> int:
    """Run the worker node and return the exit code: 1 if no head was found."""
    os.umask(0o077)
    deadline = time.monotonic() + HEAD_TIMEOUT_S
    while not is_listening(address, port):
        if time.monotonic() > deadline:
            print(f"no Ray head answers at {address}:{port}", file=sys.stderr)
            return 1
        time.sleep(POLL_S)
    bound, source = interface_addresses()[interface], find_source_address(address)
    own = source if source in bound else bound[0]
    while True:
        _join(f"{address}:{port}", own, resources, folder)
        if not is_listening(address, port):
            return 0
        time.sleep(REJOIN_PAUSE_S)


def _join(head: str, own: str, offered: Resources, folder: Path) -> None:
    """Run a Ray worker until it dies or the head does not answer any more."""
    process, answered_at = start_worker(head, own, offered, folder), time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - answered_at < SILENCE_TIMEOUT_S:
            time.sleep(POLL_S)
            if is_listening(*_split(head)):
                answered_at = time.monotonic()
    finally:
        stop(process)


def _split(head: str) -> tuple[str, int]:
    address, _, port = head.rpartition(":")
    return address, int(port)


def is_listening(address: str, port: int) -> bool:
    """Return whether a process accepts TCP connections there."""
    with suppress(OSError), socket.create_connection((address, port), POLL_S * 2):
        return True
    return False


if __name__ == "__main__":
    _address, _port, _interface, _scratch, _cores, _gpus = sys.argv[1:]
    _offered = Resources(int(_cores), tuple(map(str, range(int(_gpus)))))
    raise SystemExit(main(_address, int(_port), _interface, Path(_scratch) / "ray", _offered))
