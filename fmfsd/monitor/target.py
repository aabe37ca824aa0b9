"""Which folder somebody means: a run's, a search's, or that of a Slurm job."""

import re
from collections.abc import Sequence
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.monitor.sweep_view import is_sweep
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json

LOOKED_AT = (".", "*", "runs/*", "sweeps/*", "*/seed-*", "runs/*/seed-*")
"""Below the folder that one is in; a job array has a run for each seed."""
_JOB = re.compile(r"\d+(_\d+)?")


def folder_of(target: str, here: Path) -> Path:
    """CheckError if it is no run and no search, or no run below `here` knows of such a job."""
    path = here / target
    if _is_known(path):
        return path
    if _JOB.fullmatch(target):
        return _of_job(target, here)
    raise CheckError([Problem(target, "no folder of a run or of a search, and no id of a Slurm job")])


def _is_known(path: Path) -> bool:
    return RunDir(path).config.is_file() or is_sweep(path)


def _of_job(job: str, here: Path) -> Path:
    for pattern in LOOKED_AT:
        for folder in [here] if pattern == "." else sorted(here.glob(pattern)):
            if _is_of(folder, job):
                return folder
    where = ", ".join(str(here / pattern) for pattern in LOOKED_AT)
    raise CheckError([Problem(f"job {job}", f"no run knows of it; looked at {where}: name the run's folder")])


def _is_of(folder: Path, job: str) -> bool:
    """By what was submitted from it, or by the name that a job gives to the folder that it makes."""
    known = {name for each in _jobs(RunDir(folder)) for name in (each, each.partition("_")[0])}
    return job in known or (folder.name.endswith(f"-{job}") and _is_known(folder))


def _jobs(run: RunDir) -> Sequence[str]:
    try:
        return [str(job["id"]) for job in read_json(run.jobs)["jobs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
