"""Agent client: the coordinator's end of the connection to a node agent. Commands and events are JSON lines."""

import json
import os
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fmfsd.own_launcher import COMMAND

END_TIMEOUT_S = 10.0
AGENT_COMMAND = (*COMMAND, "launcher.agent")
"""Command line of an agent. Every node has the same Python environment at the same path."""
_OUTPUT_TAIL_BYTES = 2000
_FIRST_MESSAGE = b'{"event": "ready"'
_LINE_CHARACTERS = 200
_UNREAD_BYTES = 1 << 16
"""Limit for a line without an end before the agent's first message."""


@contextmanager
def close_agents_together() -> Iterator[list["AgentConnection"]]:
    """Yield a list for agents, and end all of them together at exit; one after the other, 64 agents would take 3 s."""
    agents = list[AgentConnection]()
    try:
        yield agents
    finally:
        for agent in agents:
            agent.close_input()
        deadline = time.monotonic() + END_TIMEOUT_S
        for agent in agents:
            agent.close(timeout_s=max(0.0, deadline - time.monotonic()))


class AgentConnection(ABC):
    """Connection of the coordinator to an agent: it sends commands and receives events.

    `deadline_s`: an agent that sends nothing for this long is given up, and an agent that receives nothing for this
    long ends everything itself. None: there is no network in between that could lose messages.
    """

    def __init__(self, deadline_s: float | None) -> None:
        self.deadline_s = deadline_s
        self._unread, self._startup_text, self._is_ready = b"", "", False
        self._last_message_at = time.monotonic()

    @property
    def is_silent(self) -> bool:
        return self.deadline_s is not None and time.monotonic() - self._last_message_at > self.deadline_s

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is readable when `read` has data."""

    @abstractmethod
    def send(self, **command: Any) -> None:
        """Send one command. A lost agent is detected by `read`."""

    @abstractmethod
    def read_error_output(self) -> str:
        """Return the end of the error output of the agent or of the program that leads to it, such as ssh."""

    @abstractmethod
    def close_input(self) -> None:
        """Close the agent's input; the agent then ends itself and everything that it started."""

    @abstractmethod
    def close(self, *, timeout_s: float = END_TIMEOUT_S) -> None:
        """Wait until the agent and everything that it started have ended, as far as they can be reached."""

    def send_heartbeat(self) -> None:
        """Send a heartbeat to an agent that has a deadline; the agent replies with one."""
        if self.deadline_s is not None:
            self.send(do="beat")

    def read(self) -> list[dict[str, Any]]:
        """Return the agent's events since the last call; `{"event": "gone", "words"}` when it has ended."""
        data = os.read(self.fileno(), 1 << 16)
        self._last_message_at = time.monotonic()
        if not data:
            return [{"event": "gone", "words": self.read_error_output()}]
        *lines, self._unread = (self._unread + data).split(b"\n")
        events = [event for line in lines if (event := self._parse_event(line))]
        if not self._is_ready:
            self._unread = self._unread[-_UNREAD_BYTES:]
        return events

    @property
    def startup_output(self) -> str:
        """Return the end of the output that the host's shell printed before the agent's first message."""
        unread = "" if self._is_ready else self._unread.decode(errors="replace")
        return (self._startup_text + unread)[-_OUTPUT_TAIL_BYTES:]

    def _parse_event(self, line: bytes) -> dict[str, Any] | None:
        """Parse one line. Before the agent's first message, a host's shell may print text, even without a line end.

        Only what follows the first message must be valid messages.
        """
        printed, first, rest = (b"", b"", line) if self._is_ready else line.partition(_FIRST_MESSAGE)
        if not (first or self._is_ready):
            self._startup_text = f"{self._startup_text}{line.decode(errors='replace')}\n"[-_OUTPUT_TAIL_BYTES:]
            return None
        self._startup_text, self._is_ready = self._startup_text + printed.decode(errors="replace"), True
        try:
            event = json.loads(first + rest)
            if not isinstance(event, dict) or "event" not in event:
                raise ValueError(line)
        except ValueError:
            text = line.decode(errors="replace")[:_LINE_CHARACTERS]
            return {"event": "failed", "message": f"invalid message from its agent: {text!r}"}
        return event


class AgentProcess(AgentConnection):
    """An agent as a child process: `command` is the agent itself, or a program such as ssh that leads to it.

    It runs in its own session, so that Ctrl-C in the terminal reaches only the coordinator.
    """

    def __init__(self, command: Sequence[str] = AGENT_COMMAND, *, deadline_s: float | None = None) -> None:
        super().__init__(deadline_s)
        self._stderr = None if deadline_s is None else tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError:
            self._close_stderr()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, **command: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write((json.dumps(command) + "\n").encode())
            self._process.stdin.flush()

    def read_error_output(self) -> str:
        if self._stderr is None:
            return self.startup_output
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        size = os.fstat(self._stderr.fileno()).st_size
        tail = os.pread(self._stderr.fileno(), _OUTPUT_TAIL_BYTES, max(0, size - _OUTPUT_TAIL_BYTES))
        return f"{self.startup_output}\n{tail.decode(errors='replace')}"

    def close_input(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self, *, timeout_s: float = END_TIMEOUT_S) -> None:
        assert self._process.stdout is not None
        self.close_input()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._close_stderr()

    def _close_stderr(self) -> None:
        if self._stderr is not None:
            self._stderr.close()
