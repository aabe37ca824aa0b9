"""Real terminals: tmux screens on a private tmux server."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.processes import wait_until

TMUX = shutil.which("tmux")


@dataclass(frozen=True)
class Terminal:
    socket: Path

    def tmux(self, *arguments: str) -> str:
        command = [str(TMUX), "-S", str(self.socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    @property
    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def wait_for(self, *texts: str) -> str:
        """Wait until the screen shows all `texts`; return its content."""
        screens: list[str] = []

        def shows_all() -> bool:
            screens[:] = [self.screen]
            return all(text in screens[0] for text in texts)

        wait_until(shows_all, f"{texts} on the screen", deadline_s=90)
        return screens[0]


@contextmanager
def open_terminal(scratch: Path, command: Sequence[str], *, columns: int = 100, rows: int = 30) -> Iterator[Terminal]:
    """Run `command` in a terminal, in the folder `scratch`; the terminal stays open after the end of the command."""
    screen = Terminal(scratch / f"tmux-{os.path.basename(command[0])}-{columns}")
    size = ("-x", str(columns), "-y", str(rows))
    subprocess.run(
        [str(TMUX), "-S", str(screen.socket), "-f", "/dev/null", "new-session", "-d", *size, "-c", str(scratch), "sh"],
        check=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    try:
        screen.tmux("send-keys", "-l", f"PS1=; clear; {' '.join(command)}; echo ended with $?")
        screen.tmux("send-keys", "Enter")
        yield screen
    finally:
        screen.tmux("kill-server")
