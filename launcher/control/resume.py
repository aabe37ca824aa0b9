"""`fmfsd-launch resume`: launches a run again as it was last launched, by the way of every launch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.files import read_json
from fmfsd.rundir import RunDir
from launcher.config import LaunchConfig
from launcher.kept import kept
from launcher.launch import Request, launch_run
from launcher.site import Site
from launcher.where import settle


def resume(
    folder: Path, *, wait: bool, as_json: bool, environment: Mapping[str, str], cwd: str, argv: Sequence[str]
) -> int:
    """The exit code: the launch's own, or 0 if the run is finished. Raises what a launch raises.

    `wait`: of a batch job, to its end.
    """
    run = RunDir(folder)
    if not run.config.exists():
        raise CheckError([Problem(str(folder), "no run directory")])
    if (outcome := _outcome(run)).get("state") == "finished":
        print(json.dumps({"run_dir": str(folder), "exit_code": 0, **outcome}) if as_json else _finished(folder))
        return 0
    launch = kept(folder, environment)
    site, launch = settle(launch, nodes=launch.nodes, environment=environment)
    _require_same_place(site, launch)
    request = Request(
        config=str(run.config),
        overrides=(),
        launch=replace(launch, slurm=replace(launch.slurm, wait=wait)),
        site=site,
        stop_after="run",
        as_json=as_json,
    )
    return launch_run(request, environment=environment, cwd=cwd, argv=argv)


def _require_same_place(site: Site, launch: LaunchConfig) -> None:
    """A run of a cluster's is not begun on the machine that somebody happens to be logged in to."""
    if launch.on == "slurm" and site.reach != "srun":
        raise CheckError([Problem("--on slurm", "this run ran in a Slurm allocation, and this process is in none")])


def _outcome(run: RunDir) -> Mapping[str, object]:
    try:
        return read_json(run.outcome)
    except (OSError, ValueError):
        return {}


def _finished(folder: Path) -> str:
    return f"run: {folder}\nthis run is finished; nothing to do"
