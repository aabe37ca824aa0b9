"""Processes that the agent has started on its node: how they end, and how to end them. Standard library only."""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.agent.parent_death import parent_death_preexec

REAP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start: command line, complete environment and working directory."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str

    def start(self, output: BinaryIO) -> "subprocess.Popen[bytes]":
        """Start it in its own session, as a child that the kernel kills when this process ends.

        OSError if it can't be started.
        """
        return subprocess.Popen(
            self.argv,
            env=dict(self.env),
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=parent_death_preexec(),
        )


class NodeProcesses(ABC):
    """The processes of one attempt on one node. Processes whose parent has died become children of the agent."""

    def __init__(self) -> None:
        self.workers = frozenset[int]()

    @property
    def starter_pid(self) -> int | None:
        """Return the process that starts the workers; None if the agent starts them."""
        return None

    @abstractmethod
    def poll(self) -> dict[int, int | None]:
        """Return the workers that have ended since the last call, with their exit codes; None: not known."""

    @property
    @abstractmethod
    def exit_code(self) -> int | None:
        """Return the node's exit code; None while a process is still running."""

    @abstractmethod
    def terminate(self) -> None:
        """Send SIGTERM to the processes."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the processes that the agent itself has started, and wait for them."""


class StarterProcess(NodeProcesses):
    """torchrun or DeepSpeed's launcher; its children are the workers."""

    def __init__(self, command: ProcessSpec, output: BinaryIO) -> None:
        super().__init__()
        self._process = command.start(output)

    @property
    def starter_pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def poll(self) -> dict[int, int | None]:
        """Read the exit codes from /proc: the starter reports them only after all workers have ended.

        DeepSpeed's launcher polls once a second and reports one exit code. Until then all codes can be read here.
        """
        if self._process.poll() is not None:
            return {}
        starter = self._process.pid
        children = list_children(starter)
        codes = {pid: code for pid in children if (code := _exit_code(pid)) is not None}
        running = frozenset(children) - codes.keys()
        # children of a thread that has just ended are not listed
        still_running = {pid for pid in self.workers - running if _is_child(pid, starter)}
        ended = self.workers - running - still_running
        self.workers = running | still_running
        return {pid: codes.get(pid) for pid in ended}

    def terminate(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class WorkerProcesses(NodeProcesses):
    """Workers that the agent starts itself. When one fails, the others get SIGTERM, as with torchrun."""

    def __init__(self, commands: Sequence[ProcessSpec], output: BinaryIO) -> None:
        super().__init__()
        self._processes = list[subprocess.Popen[bytes]]()
        try:
            for command in commands:
                self._processes.append(command.start(output))
        except OSError:
            self.kill()
            raise
        self.workers = frozenset(process.pid for process in self._processes)
        self._first_failure = 0

    @property
    def exit_code(self) -> int | None:
        """Return the exit code of the first worker that failed, else 0; None while a worker is still running."""
        return None if self.workers else self._first_failure

    def poll(self) -> dict[int, int | None]:
        codes = {process.pid: code for process in self._processes if (code := process.poll()) is not None}
        ended = {pid: codes[pid] for pid in self.workers & codes.keys()}
        self.workers -= ended.keys()
        if not self._first_failure and (failures := [code for code in ended.values() if code]):
            self._first_failure = failures[0]
            self.terminate()
        return {**ended}

    def terminate(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def kill_descendants() -> None:
    """Kill and reap all children of this process, inherited ones included. Give up after REAP_TIMEOUT_S."""
    deadline = time.monotonic() + REAP_TIMEOUT_S
    while _reap() and time.monotonic() < deadline:
        for pid in list_children(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def list_children(parent: int) -> list[int]:
    """Return the children of a process, inherited ones included."""
    children = list[int]()
    with suppress(OSError):  # the process has just ended
        for task in Path(f"/proc/{parent}/task").iterdir():
            with suppress(OSError):  # only this thread has just ended
                children += map(int, (task / "children").read_text().split())
    return children


def _reap() -> bool:
    """Collect ended children. Return whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _is_child(pid: int, parent: int) -> bool:
    """Return whether `pid` is alive and a child of `parent`."""
    state, actual_parent, *_ = _stat(pid) or ("X", "0")
    return state not in "ZX" and int(actual_parent) == parent


def _exit_code(pid: int) -> int | None:
    """Return the exit code of a zombie; None for a process that is alive or gone."""
    state, *fields = _stat(pid) or ("X",)
    return os.waitstatus_to_exitcode(int(fields[-1])) if state == "Z" else None


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state to the exit code; empty for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return []
