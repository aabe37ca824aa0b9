"""A worker node of a sweep's private Ray cluster: joins the head, rejoins if Ray dies here, and ends with the head.

`python -m launcher.tune.ray.ray_worker_node ADDRESS PORT INTERFACE SCRATCH CORES GPUS`.
"""

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from launcher.agent.network import interface_addresses, source_to
from launcher.agent.resources import Resources
from launcher.tune.ray.start import end, start_worker

LOOK_S = 0.5
HEAD_S = 120.0
"""Time for the head to start."""
SILENT_S = 3.0
PAUSE_S = 2.0


def main(address: str, port: int, interface: str, folder: Path, offered: Resources) -> int:
    """Run the worker node and return the exit code: 1 if no head was found."""
    os.umask(0o077)
    deadline = time.monotonic() + HEAD_S
    while not answers(address, port):
        if time.monotonic() > deadline:
            print(f"no Ray head answers at {address}:{port}", file=sys.stderr)
            return 1
        time.sleep(LOOK_S)
    bound, source = interface_addresses()[interface], source_to(address)
    own = source if source in bound else bound[0]
    while True:
        _join(f"{address}:{port}", own, offered, folder)
        if not answers(address, port):
            return 0
        time.sleep(PAUSE_S)


def _join(head: str, own: str, offered: Resources, folder: Path) -> None:
    """Run a Ray worker until it dies or the head does not answer any more."""
    process, answered_at = start_worker(head, own, offered, folder), time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - answered_at < SILENT_S:
            time.sleep(LOOK_S)
            if answers(*_split(head)):
                answered_at = time.monotonic()
    finally:
        end(process)


def _split(head: str) -> tuple[str, int]:
    address, _, port = head.rpartition(":")
    return address, int(port)


def answers(address: str, port: int) -> bool:
    """Return whether a process accepts TCP connections there."""
    with suppress(OSError), socket.create_connection((address, port), LOOK_S * 2):
        return True
    return False


if __name__ == "__main__":
    _address, _port, _interface, _scratch, _cores, _gpus = sys.argv[1:]
    _offered = Resources(int(_cores), tuple(map(str, range(int(_gpus)))))
    raise SystemExit(main(_address, int(_port), _interface, Path(_scratch) / "ray", _offered))
