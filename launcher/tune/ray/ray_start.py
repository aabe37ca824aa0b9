"""Ray's processes on a machine of a private cluster, started by `ray start`."""

import subprocess
import sys
from pathlib import Path

from launcher.agent.available_resources import Resources
from launcher.agent.parent_death import with_parent_death

OBJECT_STORE_BYTES = 100 << 20
"""Size of the object store; trials only pass small dictionaries."""
STOP_TIMEOUT_S = 10.0
_FREE_PORTS = {
    "--node-manager-port": "0",
    "--object-manager-port": "0",
    "--min-worker-port": "0",
    "--max-worker-port": "0",
    "--metrics-export-port": "0",
    "--dashboard-agent-listen-port": "0",
    "--dashboard-agent-grpc-port": "0",
    "--runtime-env-agent-port": "0",
}
"""Ports chosen by the kernel, since another sweep or another Ray may run on the same machine."""


def start_head(address: str, port: int, resources: Resources, folder: Path) -> "subprocess.Popen[bytes]":
    """Start the head of a new cluster, with all its files in `folder` and the token of RAY_AUTH_TOKEN_PATH."""
    head = {"--port": str(port), "--temp-dir": str(folder), "--include-dashboard": "false"}
    return _start(("--head", "--node-ip-address", address, *_flat(head)), resources)


def start_worker(head: str, address: str, resources: Resources, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a worker of the cluster whose head is at `head`, HOST:PORT."""
    return _start(("--address", head, "--node-ip-address", address, "--temp-dir", str(folder)), resources)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop `ray start` and with it, as far as possible, its processes; the node agent kills the rest."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start(options: tuple[str, ...], offered: Resources) -> "subprocess.Popen[bytes]":
    sizes = {
        "--num-cpus": str(offered.cores),
        "--num-gpus": str(len(offered.gpus)),
        "--object-store-memory": str(OBJECT_STORE_BYTES),
        "--include-log-monitor": "false",  # no driver displays workers' logs
    }
    program = (sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
    return subprocess.Popen(
        with_parent_death((*program, *options, *_flat(sizes), *_flat(_FREE_PORTS))), stdin=subprocess.DEVNULL
    )


def _flat(options: dict[str, str]) -> tuple[str, ...]:
    return tuple(part for option in options.items() for part in option)
