"""Which folder somebody means: a run's, a search's, or that of a Slurm job."""

from collections.abc import Sequence
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.files import read_json
from fmfsd.rundir import RunDir
from fmfsd.watch.sweep_view import is_sweep

LOOKED_AT = (".", "*", "runs/*", "sweeps/*")
"""Below the folder that one is in."""


def folder_of(target: str, here: Path) -> Path:
    """CheckError if it is no run and no search, or no run below `here` knows of such a job."""
    path = here / target
    if RunDir(path).config.is_file() or is_sweep(path):
        return path
    if target.isdecimal():
        return _of_job(target, here)
    raise CheckError([Problem(target, "no folder of a run or of a search, and no id of a Slurm job")])


def _of_job(job: str, here: Path) -> Path:
    for pattern in LOOKED_AT:
        for folder in [here] if pattern == "." else sorted(here.glob(pattern)):
            if job in _jobs(RunDir(folder)):
                return folder
    where = ", ".join(str(here / pattern) for pattern in LOOKED_AT)
    raise CheckError([Problem(f"job {job}", f"no run knows of it; looked at {where}: name the run's folder")])


def _jobs(run: RunDir) -> Sequence[str]:
    try:
        return [str(job["id"]).partition("_")[0] for job in read_json(run.jobs)["jobs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
