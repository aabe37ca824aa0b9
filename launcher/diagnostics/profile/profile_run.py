"""A short run of a config under torch's profiler, and one screen of what it has found."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from fmfsd.config.load import config_name
from fmfsd.errors import ConfigError, Problem, RunFailedError
from fmfsd.run.profile_record import WorkerProfile, steps_to_profile
from fmfsd.run.run_dir import RunDir
from launcher.config.error_collector import all_of
from launcher.config.launch_config import LaunchConfig
from launcher.diagnostics.profile.screen import shown
from launcher.diagnostics.profile.summary import Summary
from launcher.diagnostics.short_run import EndedByUserError, Rehearsal, shortened
from launcher.plan.plan import LaunchPlan, plan_run
from launcher.prepare_launch import Checked, Request, checked, config_of, prepare_command, run_dir_of
from launcher.supervise.run_plan import console_of


@dataclass(frozen=True)
class Profiling:
    """`launch` makes `run`, as `plan_of` plans it; `check` is for when its data was prepared on the way."""

    launch: LaunchConfig
    run: RunDir
    found: Checked
    check: Callable[[], Checked]
    plan_of: Callable[..., LaunchPlan]

    def run_to_end(self, console: Console) -> Summary:
        """Raises what a launch raises, and EndedByUserError."""
        config = self.found.config
        for text in self.found.warnings:
            console.print(f"warning: {text}", markup=False)
        Rehearsal(config, self.launch, self.run, self.plan_of, console, check=self.check).run_to_end()
        plan = self.plan_of()
        return Summary.of(
            list(map(self._found_by, range(plan.num_workers))), config, plan.device, self.found.costs.macs
        )

    def _found_by(self, rank: int) -> WorkerProfile:
        try:
            return WorkerProfile.read(self.run.profiled(rank))
        except (OSError, ValueError) as error:
            raise RunFailedError(f"the profile of rank {rank} can't be read: {error}") from error


def profile_run(request: Request, *, environment: Mapping[str, str], cwd: str) -> int:
    """The exit code. ConfigError or CheckError while nothing is started, RunFailedError after."""
    assert request.profile is not None
    profiling = _profiling(request, request.profile.steps, environment, cwd)
    if request.stop_after != "run":
        return _show(profiling, request)
    console = console_of(as_json=request.as_json)
    try:
        summary = profiling.run_to_end(console)
    except EndedByUserError as ended:
        console.print("the profile was ended")
        return ended.exit_code
    for part in shown(summary, profiling.run, plain=not console.is_terminal):
        console.print(part)
    if request.as_json:
        print(json.dumps({"run_dir": str(profiling.run.path), **summary.to_json(profiling.run)}))
    return 0


def _show(profiling: Profiling, request: Request) -> int:
    """The plan, or that nothing is wrong."""
    plan = profiling.plan_of()
    for text in profiling.found.warnings:
        print(f"warning: {text}", file=sys.stderr)
    if request.as_json:
        print(plan.to_json().rstrip())
    else:
        print(profiling.found.text(plan) if request.stop_after == "check" else plan.render())
    return 0


def _profiling(request: Request, steps: int, environment: Mapping[str, str], cwd: str) -> Profiling:
    """ConfigError or CheckError with everything that is wrong."""
    run = _folder(request, cwd)
    with suppress(ConfigError):  # the check finds it too, and what else is wrong
        request = _short(request, steps)
    check = partial(checked, request, run, environment, cwd)
    (found,) = all_of([check], beside=list(_misplaced(request, run)))
    launch, prepare = request.launch, prepare_command(found.config)
    planned = partial(plan_run, launch, found.site, run, environment=environment, cwd=cwd, prepare=prepare)
    return Profiling(launch, run, found, check, lambda *slots: _profiled(planned(*slots), steps))


def _folder(request: Request, cwd: str) -> RunDir:
    """What is asked for, else a new one."""
    if request.launch.run_dir is not None:
        return run_dir_of(request, cwd)
    return RunDir.fresh(Path(cwd) / "runs", f"{config_name(request.config)}-profile")


def _short(request: Request, steps: int) -> Request:
    """For as many steps as that takes, on the nodes that were asked for or not at all."""
    changes = shortened(config_of(request), steps_to_profile(steps))
    launch = replace(request.launch, min_nodes=None)
    return replace(request, overrides=(*request.overrides, *changes), launch=launch)


def _misplaced(request: Request, run: RunDir) -> Iterator[Problem]:
    if request.site.reach == "sbatch":
        yield Problem("--profile", "shows what it finds, and this is a job to come: say it in an allocation (salloc)")
    if not run.is_unused():
        yield Problem(str(run.path), "exists, and --profile makes a run of its own: choose another --run-dir")


def _profiled(plan: LaunchPlan, steps: int) -> LaunchPlan:
    own = {"FMFSD_PROFILE": str(steps), "KINETO_LOG_LEVEL": "99"}  # else the profiler calls a missing GPU an error
    return replace(plan, nodes=tuple(replace(node, env={**node.env, **own}) for node in plan.nodes))
