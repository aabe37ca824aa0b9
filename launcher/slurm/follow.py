"""Follows batch jobs until they have ended: what they say, and how it went."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.config.plain_text import harmless
from launcher.run_dir.log_follower import GrowingFile
from launcher.transport import slurm_commands

LOOK_S = 0.5
ASK_EVERY_S = 3.0
PATIENCE_S = 600.0
"""How long Slurm's controller may be away."""
INTERRUPTED = 130
CODES = {"finished": 0, "stopped": 75, "interrupted": INTERRUPTED, "failed": 1}


@dataclass
class Followed:
    """One job, as `7` or `7;cluster`, its log and its run, which had made `attempts` attempts before."""

    job: str
    log: Path
    run: RunDir
    attempts: int
    state: slurm_commands.JobState | None = None
    ended: bool = False

    def __post_init__(self) -> None:
        self._growing = GrowingFile(self.log)

    def new_lines(self) -> list[str]:
        """Whole lines that were not read yet; once it has ended and there are no more, the rest."""
        try:
            lines = self._growing.new_lines()
        except OSError:
            return []
        if self.ended and not lines and self._growing.unended:
            lines, self._growing.unended = [self._growing.unended], b""
        return [harmless(line.decode(errors="replace")) for line in lines]

    def exit_code(self) -> int:
        """The script's own word if it had one, else the run's, else that it failed."""
        by_itself = self.state is not None and bool(self.state.states & {"COMPLETED", "FAILED"})
        if self.state is not None and self.state.exit_code is not None and by_itself:
            return self.state.exit_code
        with suppress(OSError, ValueError, KeyError):
            outcome = read_json(self.run.outcome)
            if outcome["attempt"] > self.attempts:
                return CODES[outcome["state"]]
        return 1


def follow(jobs: Sequence[Followed], say: Callable[[str], None]) -> int:
    """The worst exit code of any. Ctrl-C leaves the jobs alone."""
    try:
        _until_ended(jobs, say)
    except KeyboardInterrupt:
        for job in jobs:
            if not job.ended:
                number, ends = (
                    slurm_commands.id_and_cluster(job.job)[0],
                    " ".join(slurm_commands.scancel_command(job.job)),
                )
                say(f"job {number} goes on; to see it again: tail -f {job.log}; to end it: {ends}")
        return INTERRUPTED
    return max(job.exit_code() for job in jobs)


def _until_ended(jobs: Sequence[Followed], say: Callable[[str], None]) -> None:
    ask_at, answered_at = 0.0, time.monotonic()
    while not all(job.ended for job in jobs):
        if time.monotonic() >= ask_at:
            ask_at = time.monotonic() + ASK_EVERY_S
            try:
                _ask(jobs, say)
                answered_at = time.monotonic()
            except CheckError:
                if time.monotonic() - answered_at > PATIENCE_S:
                    raise
        _show(jobs, say)
        time.sleep(LOOK_S)
    _show(jobs, say)


def _ask(jobs: Sequence[Followed], say: Callable[[str], None]) -> None:
    for job in jobs:
        if job.ended:
            continue
        now = slurm_commands.job_state(job.job)
        if now is not None and (job.state is None or now.state != job.state.state):
            say(str(now))
        job.state = now or job.state
        job.ended = now is None or now.is_over


def _show(jobs: Sequence[Followed], say: Callable[[str], None]) -> None:
    for job in jobs:
        while lines := job.new_lines():
            for line in lines:
                say(line if len(jobs) == 1 else f"{slurm_commands.id_and_cluster(job.job)[0]}: {line}")
