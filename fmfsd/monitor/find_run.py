"""Folder of a target on the command line: a run, a search, or the id of a Slurm job."""

import re
from collections.abc import Sequence
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.monitor.sweep_view import is_sweep
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json

SEARCH_PATTERNS = (".", "*", "runs/*", "sweeps/*", "*/seed-*", "runs/*/seed-*")
"""Patterns of run folders, relative to the working directory; a job array has one run per seed."""
_JOB = re.compile(r"\d+(_\d+)?")


def resolve_target(target: str, here: Path) -> Path:
    """Return the folder of `target`. CheckError if it is no run or search, and no run below `here` has that job id."""
    path = here / target
    if _is_target(path):
        return path
    if _JOB.fullmatch(target):
        return _folder_of_job(target, here)
    raise CheckError([Problem(target, "not the folder of a run or search, and not the id of a Slurm job")])


def _is_target(path: Path) -> bool:
    return RunDir(path).config.is_file() or is_sweep(path)


def _folder_of_job(job: str, here: Path) -> Path:
    for pattern in SEARCH_PATTERNS:
        for folder in [here] if pattern == "." else sorted(here.glob(pattern)):
            if _has_job(folder, job):
                return folder
    where = ", ".join(str(here / pattern) for pattern in SEARCH_PATTERNS)
    raise CheckError([Problem(f"job {job}", f"no run with this job in {where}: give the run's folder instead")])


def _has_job(folder: Path, job: str) -> bool:
    """Return True if the job was submitted from this run, or if the folder's name ends with the job id."""
    job_ids = {name for each in _jobs(RunDir(folder)) for name in (each, each.partition("_")[0])}
    return job in job_ids or (folder.name.endswith(f"-{job}") and _is_target(folder))


def _jobs(run: RunDir) -> Sequence[str]:
    try:
        return [str(job["id"]) for job in read_json(run.jobs)["jobs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
