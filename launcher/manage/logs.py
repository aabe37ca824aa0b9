"""`fmfsd-launch logs`: what a run's workers, starters and batch jobs say, from any host that sees its folder."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from fmfsd.run.run_dir import RunDir
from launcher.run_dir.activity import Work, existing_runs
from launcher.run_dir.batch_jobs import states_seen
from launcher.run_dir.log_follower import LogFollower

LOOK_S = 0.2
LOOK_AT_RUN_S = 3.0
"""How often it is asked whether the run goes on, of Slurm too."""


def show_logs(folder: Path, out: TextIO, *, rank: int | None, lines: int) -> None:
    """The last `lines` of each log, or of worker `rank`'s. CheckError if there is no run."""
    _say_the_rest(_Followers(existing_runs(folder), rank, lines), out)


def follow_logs(folder: Path, out: TextIO, *, rank: int | None, lines: int) -> None:
    """And what is said from now on, until nobody works on the run any more."""
    runs, look_at = existing_runs(folder), time.monotonic() + LOOK_AT_RUN_S
    follower, is_expected = _Followers(runs, rank, lines), any(map(_is_expected, runs))
    while is_expected:
        _say(follower.look(), out)
        time.sleep(LOOK_S)
        if time.monotonic() >= look_at:
            is_expected, look_at = any(map(_is_expected, runs)), time.monotonic() + LOOK_AT_RUN_S
    _say_the_rest(follower, out)


class _Followers:
    """The logs of one run, or of several, whose names then come before each line."""

    def __init__(self, runs: Sequence[RunDir], rank: int | None, lines: int) -> None:
        names = [f"{run.path.name} " if len(runs) > 1 else "" for run in runs]
        self._by_run = [(name, LogFollower(run, rank=rank, lines=lines)) for name, run in zip(names, runs, strict=True)]

    def look(self) -> list[str]:
        return [f"{name}{line}" for name, follower in self._by_run for line in follower.look()]

    def rest(self) -> list[str]:
        return [f"{name}{line}" for name, follower in self._by_run for line in follower.rest()]


def _is_expected(run: RunDir) -> bool:
    """Whether somebody is at work, or a job is to be."""
    return Work.on(run).is_under_way or any(not job.is_over for job in states_seen(run)[0])


def _say_the_rest(follower: _Followers, out: TextIO) -> None:
    while lines := follower.look():
        _say(lines, out)
    _say(follower.rest(), out)


def _say(lines: Iterable[str], out: TextIO) -> None:
    out.writelines(f"{line}\n" for line in lines)
    out.flush()
