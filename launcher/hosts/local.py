"""Agents and helpers on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from launcher.ties import die_with_me

END_S = 10.0
LOOK_S = 0.1


class LocalAgent:
    """A node agent in a session of its own, so that the terminal's Ctrl-C reaches the coordinator alone.

    `prefix` is a command that becomes the agent, as `unshare --net` does.
    """

    def __init__(self, node: int, prefix: Sequence[str] = ()) -> None:
        self.node = node
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", "launcher.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Readable when there is something to `read`."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def tell(self, **order: Any) -> None:
        """Send one order; an agent that is gone is found by `read`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write((json.dumps(order) + "\n").encode())
            self._process.stdin.flush()

    def read(self) -> list[dict[str, Any]]:
        """What the agent has said since the last call; `{"event": "gone"}` when it has ended."""
        data = os.read(self.fileno(), 1 << 16)
        if not data:
            return [{"event": "gone"}]
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [_event(line) for line in lines]

    def close(self) -> None:
        """End the agent and all that it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _event(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        text = line.decode(errors="replace")[:200]
        return {"event": "failed", "message": f"its agent said what no agent says: {text!r}"}


def run_here(argv: Sequence[str], *, stop: Callable[[], bool]) -> int:
    """Run a helper in the foreground, its words on our stderr; its exit code. It is ended once `stop` comes true."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=die_with_me())
    while process.poll() is None and not stop():
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
    process.terminate()
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
