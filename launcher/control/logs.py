"""`fmfsd-launch logs`: what a run's workers, starters and batch jobs say, from any host that sees its folder."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from fmfsd.rundir import RunDir
from launcher.control.work import Work, existing_run
from launcher.log_follower import LogFollower
from launcher.slurm.jobs import states_seen

LOOK_S = 0.2
LOOK_AT_RUN_S = 3.0
"""How often it is asked whether the run goes on, of Slurm too."""


def show_logs(folder: Path, out: TextIO, *, rank: int | None, lines: int) -> None:
    """The last `lines` of each log, or of worker `rank`'s. CheckError if there is no run."""
    _say_the_rest(LogFollower(existing_run(folder), rank=rank, lines=lines), out)


def follow_logs(folder: Path, out: TextIO, *, rank: int | None, lines: int) -> None:
    """And what is said from now on, until nobody works on the run any more."""
    run, look_at = existing_run(folder), time.monotonic() + LOOK_AT_RUN_S
    follower, is_expected = LogFollower(run, rank=rank, lines=lines), _is_expected(run)
    while is_expected:
        _say(follower.look(), out)
        time.sleep(LOOK_S)
        if time.monotonic() >= look_at:
            is_expected, look_at = _is_expected(run), time.monotonic() + LOOK_AT_RUN_S
    _say_the_rest(follower, out)


def _is_expected(run: RunDir) -> bool:
    """Whether somebody is at work, or a job is to be."""
    return Work.on(run).is_under_way or any(not job.is_over for job in states_seen(run)[0])


def _say_the_rest(follower: LogFollower, out: TextIO) -> None:
    while lines := follower.look():
        _say(lines, out)
    _say(follower.rest(), out)


def _say(lines: Iterable[str], out: TextIO) -> None:
    out.writelines(f"{line}\n" for line in lines)
    out.flush()
