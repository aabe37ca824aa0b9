"""What a drill needs privileges for: agents with a network of their own that can be cut, and a small disk.

Nothing of it has a name in the system: networks end with their agents, the disk with this process.
"""

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

from fmfsd.errors import CheckError
from launcher.transport.agent_client import AGENT, Agent

INTERFACE = "fmfsd0"
READY_S = 10.0
_LOOK_S = 0.01
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def lacks(*programs: str) -> str:
    """Why this process can not make such things; empty if it seems able to."""
    missing = [program for program in (*programs, "unshare") if shutil.which(program) is None]
    if os.geteuid() != 0:
        return "needs root"
    if missing:
        return f"needs {' and '.join(missing)}"
    tried = subprocess.run([shutil.which("unshare") or "unshare", "--mount", "--net", "true"], capture_output=True)
    return "needs CAP_SYS_ADMIN, which this container does not give" if tried.returncode else ""


class CuttableNetwork:
    """Agents of one launch, each in a network namespace; all hang on a bridge in that of node 0."""

    def __init__(self) -> None:
        self._agents: list[Agent] = []

    def start_agent(self, node: int) -> Agent:
        """An agent whose only way to the others is INTERFACE. CheckError if it can't be made."""
        if node == 0:
            self._agents = []
        agent = Agent(("unshare", "--net", "--", *AGENT))
        self._agents.append(agent)
        try:
            self._wait_for_namespace(agent)
            self._connect(node)
        except BaseException:
            agent.close()
            raise
        return agent

    def cut(self, node: int) -> None:
        """From now on nothing gets from or to the node; nobody is told."""
        self._inside(node, "ip", "link", "set", INTERFACE, "down")

    def _connect(self, node: int) -> None:
        self._inside(node, "ip", "link", "set", "lo", "up")
        if node == 0:
            self._inside(0, "ip", "link", "add", INTERFACE, "type", "bridge")
        else:
            self._plug_in(node)
        self._inside(node, "ip", "addr", "add", f"10.213.0.{node + 1}/24", "dev", INTERFACE)
        self._inside(node, "ip", "link", "set", INTERFACE, "up")

    def _plug_in(self, node: int) -> None:
        peer = ("peer", "name", f"node{node}", "netns", str(self._agents[0].pid))
        self._inside(node, "ip", "link", "add", INTERFACE, "type", "veth", *peer)
        self._inside(0, "ip", "link", "set", f"node{node}", "master", INTERFACE, "up")

    def _inside(self, node: int, *command: str) -> None:
        """Run a command in the node's network."""
        space = f"--net=/proc/{self._agents[node].pid}/ns/net"
        enter = (shutil.which("nsenter") or "nsenter", space, "--")
        done = subprocess.run([*enter, *command], capture_output=True, text=True)
        if done.returncode:
            raise CheckError(f"{' '.join(command)}: {done.stderr.strip()}")

    def _wait_for_namespace(self, agent: Agent) -> None:
        ours, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + READY_S
        while os.readlink(f"/proc/{agent.pid}/ns/net") == ours:
            if time.monotonic() > deadline:
                raise CheckError("no network namespace could be made")
            time.sleep(_LOOK_S)


def mount_small_disk(folder: Path, size: int) -> None:
    """A disk of `size` bytes in memory, as `folder`, which this process and its children alone see. OSError."""
    _checked(_libc.unshare(_CLONE_NEWNS))
    _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _checked(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size},mode=0700".encode()))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
