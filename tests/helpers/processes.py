"""Real processes for tests: commands as a user starts them, with deadlines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fmfsd.run.run_dir import RunDir
from launcher.plan.starters import DEEPSPEED, TORCHRUN

DEADLINE_S = 120.0


def command(name: str) -> str:
    """Return the path of one of our console scripts in the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def run_command(
    name: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a console script, wait for its end and capture its output."""
    return subprocess.run(
        [command(name), *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def wait_until(condition: Callable[[], Any], what: str, *, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of `condition`; fail with `what` after the deadline."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {deadline_s:g} s")


@dataclass
class LaunchProcess:
    """A running `fmfsd-launch`, its run, and its processes."""

    process: subprocess.Popen[str]
    run: RunDir

    def wait_for_step(self, step: int, *, ranks: int = 1) -> None:
        """Wait until the progress files of the first `ranks` ranks report `step` steps."""

        def reached() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before step {step}"
            return all(self.progress(rank).get("step", -1) >= step for rank in range(ranks))

        wait_until(reached, f"step {step}")

    def progress(self, rank: int) -> dict[str, Any]:
        try:
            return dict(json.loads(self.run.rank_progress(rank).read_text()))
        except (OSError, ValueError):
            return {}

    def agents(self) -> list[psutil.Process]:
        return _children(psutil.Process(self.process.pid), "launcher.agent")

    def starter(self, node: int) -> psutil.Process:
        children = (_children(self.agents()[node], part) for part in (TORCHRUN, DEEPSPEED))
        (starter,) = (child for matching in children for child in matching)
        return starter

    def worker(self, rank: int) -> psutil.Process:
        return psutil.Process(self.progress(rank)["pid"])

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_for_end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and all output."""
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, output


def _children(process: psutil.Process, part: str) -> list[psutil.Process]:
    matching = [child for child in process.children() if part in " ".join(child.cmdline())]
    return sorted(matching, key=lambda child: child.pid)


@contextmanager
def start_launch(
    cwd: Path,
    run_dir: str,
    arguments: Sequence[str],
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[LaunchProcess]:
    """Start `fmfsd-launch ... --run-dir run_dir`; kill it at the end of the block if it still runs.

    `prefix`: a command that executes it.
    """
    process = subprocess.Popen(
        [*prefix, command("fmfsd-launch"), *arguments, "--run-dir", run_dir],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield LaunchProcess(process, RunDir(cwd / run_dir))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
