"""`fmfsd-launch resume`: launches a run again with the options of its last launch."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import parse_json_object, read_json, read_private
from launcher.config.launch_config import LaunchConfig, launch_from_dict
from launcher.launch import launch_run
from launcher.launch_request import LaunchRequest
from launcher.resources.resolve_site import resolve_site
from launcher.resources.site import Site
from launcher.run_dir.activity import RunActivity, find_runs
from launcher.run_dir.batch_jobs import query_job_states
from launcher.run_dir.sweep_dir import is_sweep


def resume(
    folder: Path, *, wait: bool, as_json: bool, environment: Mapping[str, str], cwd: str, argv: Sequence[str]
) -> int:
    """Resume a run and return the launch's exit code, or 0 if the run is finished. Raises what a launch raises.

    `wait`: follow a batch job until its end.
    """
    if is_sweep(folder):
        raise CheckError([Problem(str(folder), f"is a search, not a run: resume it with fmfsd-tune --resume {folder}")])
    runs, context = find_runs(folder), _Context(wait, as_json, environment, cwd, argv)
    if runs[0].path == folder:
        return _resume_run(runs[0], context)
    return _resume_array(folder, runs, context)


@dataclass(frozen=True)
class _Context:
    """How the command was called."""

    wait: bool
    as_json: bool
    environment: Mapping[str, str]
    cwd: str
    argv: Sequence[str]

    def launch(self, run: RunDir, launch: LaunchConfig, site: Site) -> int:
        """Launch `run` again and return the exit code."""
        slurm = replace(launch.slurm, wait=self.wait)
        request = LaunchRequest(str(run.config), (), replace(launch, slurm=slurm), site, "run", self.as_json)
        return launch_run(request, environment=self.environment, cwd=self.cwd, argv=self.argv)


def _resume_run(run: RunDir, context: _Context) -> int:
    if (outcome := _read_outcome(run)).get("state") == "finished":
        content = {"run_dir": str(run.path), "exit_code": 0, **outcome}
        print(json.dumps(content) if context.as_json else _render_finished(run.path))
        return 0
    launch = load_last_launch(run, context.environment)
    site, launch = resolve_site(launch, nodes=launch.nodes, environment=context.environment)
    return context.launch(run, launch, site)


def _resume_array(folder: Path, runs: Sequence[RunDir], context: _Context) -> int:
    """Resume the runs that are neither finished nor active: as one array in Slurm, else one by one.

    Returns the exit code of the first run that does not finish.
    """
    unfinished = [run for run in runs if _read_outcome(run).get("state") != "finished"]
    idle = [run for run in unfinished if not _is_active(run)]
    if unfinished and not idle:
        raise CheckError([Problem(str(folder), "every unfinished run is already running: see fmfsd-launch status")])
    for run in unfinished:
        if run not in idle:
            print(f"{run.path.name}: already running, so it is not resumed", file=sys.stderr)
    if not idle:
        print(json.dumps({"run_dir": str(folder), "exit_code": 0}) if context.as_json else _render_finished(folder))
        return 0
    launches = [replace(load_last_launch(run, context.environment), run_dir=folder) for run in idle]
    site, launch = resolve_site(launches[0], nodes=launches[0].nodes, environment=context.environment)
    if site.transport == "sbatch" and len(set(map(_submission_key, launches))) == 1:
        seeds = ",".join(run.path.name.removeprefix("seed-") for run in idle)
        return context.launch(idle[0], replace(launch, slurm=replace(launch.slurm, array=seeds)), site)
    return next(filter(None, (_resume_run(run, context) for run in idle)), 0)


def _submission_key(launch: LaunchConfig) -> str:
    """Return the options that a launch was submitted with, without those that its job determined later."""
    return repr(replace(launch, device="auto", gpus=None, grace_s=0.0))


def _is_active(run: RunDir) -> bool:
    return RunActivity.read(run).is_under_way or any(not job.is_over for job in query_job_states(run)[0])


def load_last_launch(run: RunDir, environment: Mapping[str, str]) -> LaunchConfig:
    """Load the options of the run's last launch. CheckError if that fails or a secret variable is not set here.

    The file must be writable by this user only: its hosts and worker variables could run programs as this user.
    """
    try:
        content = parse_json_object(read_private(run.launch), run.launch)
        return replace(launch_from_dict(content, environment), run_dir=run.path)
    except (OSError, ValueError) as error:
        advice = f"launch it as before, with the same command or `fmfsd-launch {run.config}`, and --run-dir {run.path}"
        problem = f"does not contain the options of this run's launch: {advice} ({error})"
        raise CheckError([Problem(str(run.launch), problem)]) from error


def _read_outcome(run: RunDir) -> Mapping[str, object]:
    try:
        return read_json(run.outcome)
    except (OSError, ValueError):
        return {}


def _render_finished(folder: Path) -> str:
    return f"run: {folder}\nthis run is finished; nothing to do"
