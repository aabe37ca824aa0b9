"""A terminal as a person has it: a screen of tmux's, on a server of its own."""

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

    def tmux(self, *words: str) -> str:
        done = subprocess.run([str(TMUX), "-S", str(self.socket), *words], capture_output=True, text=True, check=True)
        return done.stdout

    @property
    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def wait_for(self, *texts: str) -> str:
        """The screen that has them all."""
        found: list[str] = []

        def seen() -> bool:
            found[:] = [self.screen]
            return all(text in found[0] for text in texts)

        wait_until(seen, f"{texts} on the screen", deadline_s=90)
        return found[0]


@contextmanager
def terminal(scratch: Path, command: Sequence[str], *, columns: int = 100, rows: int = 30) -> Iterator[Terminal]:
    """`command` in it, in the folder `scratch`; the screen stays when that has ended."""
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
