"""`fmfsd-launch resume`: launches a run again as it was last launched, by the way of every launch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.files import json_object, read_json, read_private
from fmfsd.rundir import RunDir
from launcher.config import LaunchConfig, from_json
from launcher.control.work import existing_run
from launcher.launch import Request, launch_run
from launcher.tune.sweep_dir import is_sweep
from launcher.where import settle


def resume(
    folder: Path, *, wait: bool, as_json: bool, environment: Mapping[str, str], cwd: str, argv: Sequence[str]
) -> int:
    """The exit code: the launch's own, or 0 if the run is finished. Raises what a launch raises.

    `wait`: of a batch job, to its end.
    """
    if is_sweep(folder):
        raise CheckError([Problem(str(folder), f"a search and no run; to go on with it: fmfsd-tune --resume {folder}")])
    run = existing_run(folder)
    if (outcome := _outcome(run)).get("state") == "finished":
        print(json.dumps({"run_dir": str(folder), "exit_code": 0, **outcome}) if as_json else _finished(folder))
        return 0
    launch = last_launch(run, environment)
    site, launch = settle(launch, nodes=launch.nodes, environment=environment)
    request = Request(
        config=str(run.config),
        overrides=(),
        launch=replace(launch, slurm=replace(launch.slurm, wait=wait)),
        site=site,
        stop_after="run",
        as_json=as_json,
    )
    return launch_run(request, environment=environment, cwd=cwd, argv=argv)


def last_launch(run: RunDir, environment: Mapping[str, str]) -> LaunchConfig:
    """CheckError if the run's folder does not tell it, or a secret of its is not set here.

    It names hosts and variables of workers, by which whoever can write it could run programs as this user.
    """
    try:
        content = json_object(read_private(run.launch), run.launch)
        return replace(from_json(content, environment), run_dir=run.path)
    except (OSError, ValueError) as error:
        advice = f"launch it as before, with the same command or `fmfsd-launch {run.config}`, and --run-dir {run.path}"
        wrong = f"does not say how this run was launched: {advice} ({error})"
        raise CheckError([Problem(str(run.launch), wrong)]) from error


def _outcome(run: RunDir) -> Mapping[str, object]:
    try:
        return read_json(run.outcome)
    except (OSError, ValueError):
        return {}


def _finished(folder: Path) -> str:
    return f"run: {folder}\nthis run is finished; nothing to do"
