"""Follows batch jobs until they have ended: prints their logs and states, and returns the exit code."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.plain_text import sanitize_line
from launcher.run_dir.log_follower import GrowingFile
from launcher.transport import slurm_commands
from launcher.transport.slurm_job_state import JobState

POLL_S = 0.5
QUERY_EVERY_S = 3.0
CONTROLLER_TIMEOUT_S = 600.0
"""Time limit for Slurm's controller to answer again."""
INTERRUPTED = 130
EXIT_CODES = {"finished": 0, "stopped": 75, "interrupted": INTERRUPTED, "failed": 1}


@dataclass
class FollowedJob:
    """One job, as `7` or `7;cluster`, its log and its run. `attempts`: the run's number of attempts before the job."""

    job: str
    log: Path
    run: RunDir
    attempts: int
    state: JobState | None = None
    is_over: bool = False

    def __post_init__(self) -> None:
        self._growing = GrowingFile(self.log)

    def read_new_lines(self) -> list[str]:
        """Read whole lines that were not read yet; after the job's end also an unterminated last line."""
        try:
            lines = self._growing.read_new_lines()
        except OSError:
            return []
        if self.is_over and not lines and self._growing.unended:
            lines, self._growing.unended = [self._growing.unended], b""
        return [sanitize_line(line.decode(errors="replace")) for line in lines]

    def exit_code(self) -> int:
        """Return the batch script's exit code if Slurm knows it, else the code of the run's outcome, else 1."""
        has_exited = self.state is not None and bool(self.state.states & {"COMPLETED", "FAILED"})
        if self.state is not None and self.state.exit_code is not None and has_exited:
            return self.state.exit_code
        with suppress(OSError, ValueError, KeyError):
            outcome = read_json(self.run.outcome)
            if outcome["attempt"] > self.attempts:
                return EXIT_CODES[outcome["state"]]
        return 1


def follow_jobs(jobs: Sequence[FollowedJob], report: Callable[[str], None]) -> int:
    """Follow `jobs` and return their highest exit code. Ctrl-C ends the following, not the jobs."""
    try:
        _poll_until_ended(jobs, report)
    except KeyboardInterrupt:
        for job in jobs:
            if not job.is_over:
                number = slurm_commands.split_job_reference(job.job)[0]
                cancel = " ".join(slurm_commands.scancel_command(job.job))
                report(f"job {number} continues; to follow it: tail -f {job.log}; to cancel it: {cancel}")
        return INTERRUPTED
    return max(job.exit_code() for job in jobs)


def _poll_until_ended(jobs: Sequence[FollowedJob], report: Callable[[str], None]) -> None:
    query_at, answered_at = 0.0, time.monotonic()
    while not all(job.is_over for job in jobs):
        if time.monotonic() >= query_at:
            query_at = time.monotonic() + QUERY_EVERY_S
            try:
                _query(jobs, report)
                answered_at = time.monotonic()
            except CheckError:
                if time.monotonic() - answered_at > CONTROLLER_TIMEOUT_S:
                    raise
        _print_new_lines(jobs, report)
        time.sleep(POLL_S)
    _print_new_lines(jobs, report)


def _query(jobs: Sequence[FollowedJob], report: Callable[[str], None]) -> None:
    for job in jobs:
        if job.is_over:
            continue
        now = slurm_commands.query_job_state(job.job)
        if now is not None and (job.state is None or now.state != job.state.state):
            report(str(now))
        job.state = now or job.state
        job.is_over = now is None or now.is_over


def _print_new_lines(jobs: Sequence[FollowedJob], report: Callable[[str], None]) -> None:
    for job in jobs:
        while lines := job.read_new_lines():
            for line in lines:
                report(line if len(jobs) == 1 else f"{slurm_commands.split_job_reference(job.job)[0]}: {line}")
