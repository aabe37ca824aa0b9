"""How a run was last launched, kept in its folder for whoever launches it again."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fmfsd.errors import CheckError, Problem
from fmfsd.files import read_json, write_json
from fmfsd.rundir import RunDir
from launcher.config import LaunchConfig, from_json, to_json
from launcher.jobs import jobs_of
from launcher.site import Site

_ON: Mapping[str, Literal["local", "ssh", "slurm"]] = {"here": "local", "ssh": "ssh", "srun": "slurm"}


def keep(run: RunDir, launch: LaunchConfig, site: Site, environment: Mapping[str, str]) -> None:
    """`launch`, as it came to run on `site`. OSError if it can't be written.

    Not from inside a batch job that was submitted for this run: the launch to repeat is the one that submitted it.
    """
    if environment.get("SLURM_JOB_ID") not in [job.id for job in jobs_of(run)]:
        write_json(run.launch, to_json(replace(launch, on=_ON[site.reach])))


def kept(folder: Path, environment: Mapping[str, str]) -> LaunchConfig:
    """The last launch of the run in `folder`. CheckError if there is none, or a secret of its is not set here."""
    path = RunDir(folder).launch
    try:
        return replace(from_json(read_json(path), environment), run_dir=folder)
    except (OSError, ValueError) as error:
        advice = "launch it as before, with the same command and --run-dir"
        raise CheckError([Problem(str(path), f"does not say how this run was launched: {advice} ({error})")]) from error
