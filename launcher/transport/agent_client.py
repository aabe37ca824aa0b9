"""A node's agent as its coordinator sees it: a process that is told orders and tells events, a JSON object a line."""

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

END_S = 10.0
AGENT = (*COMMAND, "launcher.agent")
"""What becomes an agent on every node, which has the same environment of Python at the same place."""
_LAST_WORDS_BYTES = 2000
_FIRST_MESSAGE = b'{"event": "ready"'
_LINE_CHARACTERS = 200
_UNREAD_BYTES = 1 << 16
"""At most so much of an endless line is stored before the agent's first message."""


@contextmanager
def closing_all() -> Iterator[list["Link"]]:
    """A list for agents, that are ended together: one after the other, 64 would take 3 s."""
    agents = list[Link]()
    try:
        yield agents
    finally:
        for agent in agents:
            agent.hang_up()
        end = time.monotonic() + END_S
        for agent in agents:
            agent.close(within_s=max(0.0, end - time.monotonic()))


class Link(ABC):
    """A coordinator's way to an agent: orders go there, events come back.

    An agent that is `deadline_s` seconds without a word is given up, and ends everything itself when it is that long
    without one from us; None: there is no network between, in which words are lost.
    """

    def __init__(self, deadline_s: float | None) -> None:
        self.deadline_s = deadline_s
        self._unread, self._noise, self._has_begun = b"", "", False
        self._heard_at = time.monotonic()

    @property
    def is_silent(self) -> bool:
        return self.deadline_s is not None and time.monotonic() - self._heard_at > self.deadline_s

    @abstractmethod
    def fileno(self) -> int:
        """Readable when there is something to `read`."""

    @abstractmethod
    def tell(self, **order: Any) -> None:
        """Send one order; an agent that is gone is found by `read`."""

    @abstractmethod
    def last_words(self) -> str:
        """The end of what the way to the agent said to people: why it did not get there."""

    @abstractmethod
    def hang_up(self) -> None:
        """Let the agent end itself and all that it started."""

    @abstractmethod
    def close(self, *, within_s: float = END_S) -> None:
        """The agent and all that it started have ended when this returns, if they can be reached."""

    def beat(self) -> None:
        """A sign of life to one that waits for it; it answers with another."""
        if self.deadline_s is not None:
            self.tell(do="beat")

    def read(self) -> list[dict[str, Any]]:
        """What the agent has said since the last call; `{"event": "gone", "words"}` when it has ended."""
        data = os.read(self.fileno(), 1 << 16)
        self._heard_at = time.monotonic()
        if not data:
            return [{"event": "gone", "words": self.last_words()}]
        *lines, self._unread = (self._unread + data).split(b"\n")
        events = [event for line in lines if (event := self._event(line))]
        if not self._has_begun:
            self._unread = self._unread[-_UNREAD_BYTES:]
        return events

    @property
    def printed(self) -> str:
        """The end of what the host's shell has printed before the agent's first message."""
        return (self._noise + ("" if self._has_begun else self._unread.decode(errors="replace")))[-_LAST_WORDS_BYTES:]

    def _event(self, line: bytes) -> dict[str, Any] | None:
        """A host's shell may print before the agent's first message, also without an end of line: only what comes after
        that message must be an agent's."""
        printed, first, rest = (b"", b"", line) if self._has_begun else line.partition(_FIRST_MESSAGE)
        if not (first or self._has_begun):
            self._noise = f"{self._noise}{line.decode(errors='replace')}\n"[-_LAST_WORDS_BYTES:]
            return None
        self._noise, self._has_begun = self._noise + printed.decode(errors="replace"), True
        try:
            event = json.loads(first + rest)
            if not isinstance(event, dict) or "event" not in event:
                raise ValueError(line)
        except ValueError:
            text = line.decode(errors="replace")[:_LINE_CHARACTERS]
            return {"event": "failed", "message": f"its agent said what no agent says: {text!r}"}
        return event


class Agent(Link):
    """The agent that `command` becomes, or leads to on another machine, in a session of its own, so that the terminal's
    Ctrl-C reaches the coordinator alone."""

    def __init__(self, command: Sequence[str] = AGENT, *, deadline_s: float | None = None) -> None:
        super().__init__(deadline_s)
        self._words = None if deadline_s is None else tempfile.TemporaryFile()  # noqa: SIM115 (closed with us)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                start_new_session=True,
            )
        except OSError:
            self._close_words()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def tell(self, **order: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write((json.dumps(order) + "\n").encode())
            self._process.stdin.flush()

    def last_words(self) -> str:
        if self._words is None:
            return self.printed
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        size = os.fstat(self._words.fileno()).st_size
        end = os.pread(self._words.fileno(), _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES))
        return f"{self.printed}\n{end.decode(errors='replace')}"

    def hang_up(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self, *, within_s: float = END_S) -> None:
        assert self._process.stdout is not None
        self.hang_up()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._close_words()

    def _close_words(self) -> None:
        if self._words is not None:
            self._words.close()
