"""A short run of a config under torch.profiler, and one screen of results."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console

from fmfsd.errors import ConfigError, Problem, RunFailedError
from fmfsd.run.profile_record import WorkerProfile, count_profile_steps
from fmfsd.run.run_dir import RunDir
from launcher.config.error_collector import collect_all
from launcher.config.launch_config import LaunchConfig
from launcher.diagnostics.profile.screen import render
from launcher.diagnostics.profile.summary import Summary
from launcher.diagnostics.short_run import InterruptedByUserError, ShortRun, short_run_dir, shorten
from launcher.launch_request import (
    CheckedLaunch,
    LaunchRequest,
    check_request,
    load_request_config,
    prepare_command,
    show_plan,
)
from launcher.plan.launch_plan import LaunchPlan, plan_run
from launcher.supervise.execute_plan import create_console


@dataclass(frozen=True)
class Profiling:
    """A run of `launch`, planned by `plan_of`. `check` repeats the checks after its data was prepared."""

    launch: LaunchConfig
    run: RunDir
    found: CheckedLaunch
    check: Callable[[], CheckedLaunch]
    plan_of: Callable[..., LaunchPlan]

    def run_to_end(self, console: Console) -> Summary:
        """Train, and summarise the profiles of all workers. Raises what a launch raises, and InterruptedByUserError."""
        config = self.found.config
        for text in self.found.warnings:
            console.print(f"warning: {text}", markup=False)
        ShortRun(config, self.launch, self.run, self.plan_of, console, check=self.check).run_to_end()
        plan = self.plan_of()
        return Summary.of(
            list(map(self._profile_of, range(plan.num_workers))), config, plan.device, self.found.costs.macs
        )

    def _profile_of(self, rank: int) -> WorkerProfile:
        try:
            return WorkerProfile.read(self.run.profile_result(rank))
        except (OSError, ValueError) as error:
            raise RunFailedError(f"the profile of rank {rank} can't be read: {error}") from error


def profile_run(request: LaunchRequest, steps: int, *, environment: Mapping[str, str], cwd: str) -> int:
    """Return the exit code. ConfigError or CheckError while nothing is started, RunFailedError after."""
    profiling = _profiling(request, steps, environment, cwd)
    if request.stop_after != "run":
        show_plan(request, profiling.found, profiling.plan_of())
        return 0
    console = create_console(as_json=request.as_json)
    try:
        summary = profiling.run_to_end(console)
    except InterruptedByUserError as interruption:
        console.print("the profile was ended")
        return interruption.exit_code
    for part in render(summary, profiling.run, plain=not console.is_terminal):
        console.print(part)
    if request.as_json:
        print(json.dumps({"run_dir": str(profiling.run.path), **summary.to_json(profiling.run)}))
    return 0


def _profiling(request: LaunchRequest, steps: int, environment: Mapping[str, str], cwd: str) -> Profiling:
    """Check and plan the run. ConfigError or CheckError with all problems."""
    run = short_run_dir(request, cwd, "profile")
    with suppress(ConfigError):  # the checks report it together with other problems
        request = _short(request, steps)
    check = partial(check_request, request, run, environment, cwd)
    (found,) = collect_all([check], other_problems=list(_existing(run)))
    launch, prepare = request.launch, prepare_command(found.config)
    planned = partial(plan_run, launch, found.site, run, environment=environment, cwd=cwd, prepare=prepare)
    return Profiling(launch, run, found, check, lambda *slots: _profiled(planned(*slots), steps))


def _short(request: LaunchRequest, steps: int) -> LaunchRequest:
    """Return the request for the steps that a profile takes, not elastic."""
    changes = shorten(load_request_config(request), count_profile_steps(steps))
    launch = replace(request.launch, min_nodes=None)
    return replace(request, overrides=(*request.overrides, *changes), launch=launch)


def _existing(run: RunDir) -> Iterator[Problem]:
    if not run.is_unused():
        yield Problem(str(run.path), "exists, and a profile needs a new run: use another --run-dir")


def _profiled(plan: LaunchPlan, steps: int) -> LaunchPlan:
    own = {
        "FMFSD_PROFILE": str(steps),
        "KINETO_LOG_LEVEL": "99",
    }  # the profiler reports a missing GPU as an error otherwise
    return replace(plan, nodes=tuple(replace(node, env={**node.env, **own}) for node in plan.nodes))
