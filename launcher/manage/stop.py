"""`fmfsd-launch stop` and `cancel`: take a run from Slurm's queue, and ask whoever works on it, or on a search, to end.

They ask by a file in the run's folder, which works from every host that sees it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import NOW, RunDir
from fmfsd.system.atomic_files import read_json, write_whole
from launcher.run_dir.activity import SILENT_S, Work, existing_runs
from launcher.run_dir.batch_jobs import states_seen
from launcher.transport import slurm_commands
from launcher.transport.slurm_commands import JobState

LOOK_S = 0.2


def request_stop(folder: Path, *, wait: bool) -> str:
    """To end with a checkpoint. What to tell the user; CheckError if there is nothing to stop."""
    return _end(existing_runs(folder), "", "asked to stop", wait=wait)


def request_end(folder: Path, *, wait: bool) -> str:
    """To end at once. What to tell the user; CheckError if there is nothing to end."""
    return _end(existing_runs(folder), NOW, "asked to end at once", wait=wait)


def _end(runs: Sequence[RunDir], request: str, says: str, *, wait: bool) -> str:
    """All runs are requested to end before one of them is waited for. CheckError if none of them is at work."""
    answers, problems = dict[Path, _Answer](), list[Problem]()
    for run in runs:
        try:
            answers[run.path] = _request(run, request)
        except CheckError as error:
            problems += error.problems
    if not answers:
        raise CheckError(problems)
    return "\n".join(
        f"{f'{path.name}: ' if len(runs) > 1 else ''}{line}"
        for path, answer in answers.items()
        for line in answer.lines(RunDir(path), says, wait=wait)
    )


@dataclass(frozen=True)
class _Answer:
    """What a request came to: jobs that were `taken` from Slurm, and `who` was asked to end; empty: nobody."""

    taken: list[str]
    who: str
    trouble: list[Problem]

    def lines(self, run: RunDir, says: str, *, wait: bool) -> list[str]:
        ended = [_ended(run) if wait else f"{says}: {self.who}"] if self.who else []
        return [*self.taken, *ended, *map(str, self.trouble)]


def _request(run: RunDir, request: str) -> _Answer:
    """The request goes to whoever is or may be at work. A job that waits, or whose launch is not heard of yet, is
    Slurm's to end, which a launch answers with a checkpoint."""
    jobs, trouble = states_seen(run)
    unheard = not Work.on(run).is_under_way
    said = [_taken(job) for job in jobs if not job.is_over and (job.is_waiting or unheard)]
    work = Work.on(run)
    is_asked = work.is_under_way or (not said and work.may_be_elsewhere)
    if is_asked:
        write_whole(run.stop_request, request)
    if not said and not is_asked:
        last = f"; the last was {work.owner}" if work.owner else ""
        raise CheckError([Problem(str(run.path), f"no launch is at work there{last}"), *trouble])
    return _Answer(said, work.who if is_asked else "", trouble)


def _taken(job: JobState) -> str:
    slurm_commands.cancel(job.reference)
    return f"taken from Slurm: {job}"


def _ended(run: RunDir) -> str:
    """Once it has, and another launch may begin."""
    while _is_held(run):
        time.sleep(LOOK_S)
    try:
        return f"ended: {read_json(run.outcome)['state']}"
    except (OSError, ValueError, KeyError):
        return "ended: without an outcome"


def _is_held(run: RunDir) -> bool:
    """On another host also after its outcome, until its owner takes the request away."""
    work = Work.on(run)
    elsewhere = work.owner is not None and not work.owner.is_here and work.quiet_s < SILENT_S
    return work.is_under_way or (elsewhere and run.stop_request.exists())
