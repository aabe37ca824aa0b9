"""The processes that an agent has started on its node: how they end, and how to end them. The standard library only."""

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

from launcher.agent.parent_death import die_with_me

REAP_S = 5.0


@dataclass(frozen=True)
class Command:
    """What to start: a command line, all its variables and its working directory."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str

    def start(self, output: BinaryIO) -> "subprocess.Popen[bytes]":
        """As a child that the kernel kills when this process ends, in a session of its own. OSError if it can't be."""
        return subprocess.Popen(
            self.argv,
            env=dict(self.env),
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_me(),
        )


class NodeProcesses(ABC):
    """One node's processes of one attempt. Those whose parent died become children of the agent, so none is lost."""

    def __init__(self) -> None:
        self.workers = frozenset[int]()

    @property
    def starter_pid(self) -> int | None:
        """The process that starts the workers; None if the agent does so itself."""
        return None

    @abstractmethod
    def poll(self) -> dict[int, int | None]:
        """Workers that have ended since the last call, with their exit codes as far as these can be known."""

    @property
    @abstractmethod
    def exit_code(self) -> int | None:
        """The node's exit code, once nothing is left to wait for."""

    @abstractmethod
    def terminate(self) -> None:
        """Request the end of all of them."""

    @abstractmethod
    def kill(self) -> None:
        """End the processes that the agent itself has started, and wait for their end."""


class StarterProcess(NodeProcesses):
    """torchrun or DeepSpeed's launcher, whose children are the workers."""

    def __init__(self, command: Command, output: BinaryIO) -> None:
        super().__init__()
        self._process = command.start(output)

    @property
    def starter_pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def poll(self) -> dict[int, int | None]:
        """Read from /proc, because the starter waits for all workers, with the grace, before it reports anything.

        DeepSpeed's looks once a second and reports one exit code: until then all of them can be read here.
        """
        if self._process.poll() is not None:
            return {}
        starter = self._process.pid
        children = children_of(starter)
        codes = {pid: code for pid in children if (code := _exit_code(pid)) is not None}
        now = frozenset(children) - codes.keys()
        still = {pid for pid in self.workers - now if _is_child(pid, starter)}  # of a thread that has just ended
        ended = self.workers - now - still
        self.workers = now | still
        return {pid: codes.get(pid) for pid in ended}

    def terminate(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class WorkerProcesses(NodeProcesses):
    """Workers that the agent starts itself. When one fails, the others are requested to end, as torchrun does."""

    def __init__(self, commands: Sequence[Command], output: BinaryIO) -> None:
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
        """That of the first worker that failed, else 0."""
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


def end_descendants() -> None:
    """Kill and reap all children of this process, inherited ones included, for REAP_S at most."""
    deadline = time.monotonic() + REAP_S
    while _reap() and time.monotonic() < deadline:
        for pid in children_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def children_of(parent: int) -> list[int]:
    """The children of a process, those that it inherited included."""
    found = list[int]()
    with suppress(OSError):  # it has just ended
        for task in Path(f"/proc/{parent}/task").iterdir():
            with suppress(OSError):  # just this thread of it has
                found += map(int, (task / "children").read_text().split())
    return found


def _reap() -> bool:
    """Collect ended children; whether any is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _is_child(pid: int, parent: int) -> bool:
    """Whether `pid` is alive and a child of `parent`."""
    state, above, *_ = _stat(pid) or ("X", "0")
    return state not in "ZX" and int(above) == parent


def _exit_code(pid: int) -> int | None:
    """The exit code of a zombie; None for a process that is alive or gone."""
    state, *others = _stat(pid) or ("X",)
    return os.waitstatus_to_exitcode(int(others[-1])) if state == "Z" else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state to the exit code; empty for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return []
