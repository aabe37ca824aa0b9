"""Isolation for drills, which needs privileges: agents in network namespaces that can be cut off, and a small disk.

Nothing has a global name: the networks end with their agents, and the disk with this process.
"""

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

from fmfsd.errors import CheckError
from launcher.transport.agent_client import AGENT_COMMAND, AgentProcess

INTERFACE = "fmfsd0"
READY_TIMEOUT_S = 10.0
_POLL_S = 0.01
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def isolation_problem(*programs: str) -> str:
    """Return why this process can't create namespaces and mounts; empty if it probably can."""
    missing = [program for program in (*programs, "unshare") if shutil.which(program) is None]
    if os.geteuid() != 0:
        return "needs root"
    if missing:
        return f"needs {' and '.join(missing)}"
    completed = subprocess.run([shutil.which("unshare") or "unshare", "--mount", "--net", "true"], capture_output=True)
    return "needs CAP_SYS_ADMIN, which this container does not give" if completed.returncode else ""


class CuttableNetwork:
    """Agents of one launch, each in its own network namespace, connected by a bridge in the namespace of node 0."""

    def __init__(self) -> None:
        self._agents: list[AgentProcess] = []

    def start_agent(self, node: int) -> AgentProcess:
        """Start an agent that reaches the other agents only over INTERFACE. CheckError if that fails."""
        if node == 0:
            self._agents = []
        agent = AgentProcess(("unshare", "--net", "--", *AGENT_COMMAND))
        self._agents.append(agent)
        try:
            self._wait_for_namespace(agent)
            self._connect(node)
        except BaseException:
            agent.close()
            raise
        return agent

    def cut(self, node: int) -> None:
        """Disconnect the node from the others without any notification."""
        self._run_in_namespace(node, "ip", "link", "set", INTERFACE, "down")

    def _connect(self, node: int) -> None:
        self._run_in_namespace(node, "ip", "link", "set", "lo", "up")
        if node == 0:
            self._run_in_namespace(0, "ip", "link", "add", INTERFACE, "type", "bridge")
        else:
            self._attach_to_bridge(node)
        self._run_in_namespace(node, "ip", "addr", "add", f"10.213.0.{node + 1}/24", "dev", INTERFACE)
        self._run_in_namespace(node, "ip", "link", "set", INTERFACE, "up")

    def _attach_to_bridge(self, node: int) -> None:
        peer = ("peer", "name", f"node{node}", "netns", str(self._agents[0].pid))
        self._run_in_namespace(node, "ip", "link", "add", INTERFACE, "type", "veth", *peer)
        self._run_in_namespace(0, "ip", "link", "set", f"node{node}", "master", INTERFACE, "up")

    def _run_in_namespace(self, node: int, *command: str) -> None:
        """Run a command in the node's network namespace."""
        namespace = f"--net=/proc/{self._agents[node].pid}/ns/net"
        enter = (shutil.which("nsenter") or "nsenter", namespace, "--")
        completed = subprocess.run([*enter, *command], capture_output=True, text=True)
        if completed.returncode:
            raise CheckError(f"{' '.join(command)}: {completed.stderr.strip()}")

    def _wait_for_namespace(self, agent: AgentProcess) -> None:
        ours, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + READY_TIMEOUT_S
        while os.readlink(f"/proc/{agent.pid}/ns/net") == ours:
            if time.monotonic() > deadline:
                raise CheckError(f"no network namespace in {READY_TIMEOUT_S:g} s: leave cut-link out of the drill")
            time.sleep(_POLL_S)


def mount_small_disk(folder: Path, size: int) -> None:
    """Mount a disk of `size` bytes in memory at `folder`, visible only to this process and its children. OSError."""
    _require_success(_libc.unshare(_CLONE_NEWNS))
    _require_success(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _require_success(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size},mode=0700".encode()))


def _require_success(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
