"""`fmfsd-launch logs`: logs of a run's workers, starters and batch jobs, from any host that can access its folder."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from fmfsd.run.run_dir import RunDir
from launcher.run_dir.activity import RunActivity, find_runs
from launcher.run_dir.batch_jobs import query_job_states
from launcher.run_dir.log_follower import LogFollower

POLL_S = 0.2
CHECK_RUN_EVERY_S = 3.0
"""Interval of the checks whether the run is still active; they may query Slurm."""


def show_logs(folder: Path, out: TextIO, *, rank: int | None, lines: int) -> None:
    """Print the last `lines` of each log, or of worker `rank`'s. CheckError if there is no run."""
    _print_rest(_Followers(find_runs(folder), rank, lines), out)


def follow_logs(folder: Path, out: TextIO, *, rank: int | None, lines: int) -> None:
    """Print the last `lines` and then every new line, until the run is not active any more. CheckError as above."""
    runs, check_at = find_runs(folder), time.monotonic() + CHECK_RUN_EVERY_S
    follower, is_active = _Followers(runs, rank, lines), any(map(_is_active, runs))
    while is_active:
        _print(follower.poll(), out)
        time.sleep(POLL_S)
        if time.monotonic() >= check_at:
            is_active, check_at = any(map(_is_active, runs)), time.monotonic() + CHECK_RUN_EVERY_S
    _print_rest(follower, out)


class _Followers:
    """Follows the logs of one run, or of several with each line prefixed by the run's name."""

    def __init__(self, runs: Sequence[RunDir], rank: int | None, lines: int) -> None:
        names = [f"{run.path.name} " if len(runs) > 1 else "" for run in runs]
        self._by_run = [(name, LogFollower(run, rank=rank, lines=lines)) for name, run in zip(names, runs, strict=True)]

    def poll(self) -> list[str]:
        return [f"{name}{line}" for name, follower in self._by_run for line in follower.poll()]

    def rest(self) -> list[str]:
        return [f"{name}{line}" for name, follower in self._by_run for line in follower.unended_lines()]


def _is_active(run: RunDir) -> bool:
    """Return whether a launch is working on the run, or a batch job is pending or running."""
    return RunActivity.read(run).is_under_way or any(not job.is_over for job in query_job_states(run)[0])


def _print_rest(follower: _Followers, out: TextIO) -> None:
    while lines := follower.poll():
        _print(lines, out)
    _print(follower.rest(), out)


def _print(lines: Iterable[str], out: TextIO) -> None:
    out.writelines(f"{line}\n" for line in lines)
    out.flush()
