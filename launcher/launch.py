"""A launch from request to exit code: check, plan, and then show the plan or execute it."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from fmfsd.config import RunConfig
from fmfsd.errors import ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.config.array_seeds import ArraySeeds
from launcher.config.launch_config import LaunchConfig
from launcher.launch_request import (
    CheckedLaunch,
    LaunchRequest,
    check_request,
    prepare_command,
    resolve_run_dir,
    show_plan,
)
from launcher.plan.launch_plan import LaunchPlan, plan_run
from launcher.resources.allocation import Allocation
from launcher.resources.host_probe import UnreachableError
from launcher.resources.site import Site
from launcher.slurm.job_options import LEAD_MARGIN_S, warning_lead_s
from launcher.supervise.unreachable_nodes import handle_unreachable


def launch_run(request: LaunchRequest, *, environment: Mapping[str, str], cwd: str, argv: Sequence[str]) -> int:
    """Return the exit code. Raises ConfigError or CheckError while nothing is started, RunFailedError after."""
    if request.site.transport == "sbatch":
        from launcher.slurm.submit import submit

        return submit(request, environment=environment, cwd=cwd, argv=argv)
    job = Allocation.from_environment(environment) if request.site.transport == "srun" else None
    request = _with_task_seed(request, job)
    run = resolve_run_dir(request, cwd, job)
    check = partial(_check_in_job, job, request, run, environment, cwd)
    found = check()
    if job is not None:
        request = replace(request, launch=_with_job_resources(request.launch, found.site, run))
    plan_for = partial(
        plan_run,
        request.launch,
        found.site,
        environment=environment,
        cwd=cwd,
        prepare=prepare_command(found.config),
    )
    if request.stop_after == "run":
        return _execute(request, found, run, plan_for, check, argv, job)
    show_plan(request, found, plan_for(run, found.slots))
    return 0


def _with_job_resources(launch: LaunchConfig, site: Site, run: RunDir) -> LaunchConfig:
    """Return the launch with the job's device, workers and warning time, so that it can be resumed elsewhere."""
    device, workers = site.placement(launch)
    grace_s = min(launch.max_grace_s, max(launch.grace_s, warning_lead_s(run) - LEAD_MARGIN_S))
    return replace(launch, device=device, gpus=workers, grace_s=grace_s)


def _check_in_job(
    job: Allocation | None, request: LaunchRequest, run: RunDir, environment: Mapping[str, str], cwd: str
) -> CheckedLaunch:
    """Check the request. In a Slurm job, nodes that do not answer may also lead to a requeue."""
    try:
        return check_request(request, run, environment, cwd)
    except UnreachableError as error:
        if job is not None and request.stop_after == "run":
            handle_unreachable(error, job, run, partial(print, file=sys.stderr, flush=True))
        raise


def _execute(
    request: LaunchRequest,
    found: CheckedLaunch,
    run: RunDir,
    plan_for: Callable[..., LaunchPlan],
    check: Callable[[], object],
    argv: Sequence[str],
    job: Allocation | None,
) -> int:
    """Run the plan to its end. Imports here what would slow down a dry run."""
    from launcher.supervise.execute_plan import Execution, create_console

    console = create_console(as_json=request.as_json)
    plan_of = partial(plan_for, run)
    execution = Execution(
        found.config,
        request.launch,
        run,
        plan_of,
        check=check,
        warnings=found.warnings,
        console=console,
        as_json=request.as_json,
        job=job,
        hardware=found.hosts.hardware,
        slots=found.slots,
    )
    return execution.run_to_end(argv)


def print_schema() -> None:
    """Print the JSON schema of a config, for editors."""
    print(json.dumps(RunConfig.model_json_schema(mode="serialization"), indent=2))


def _with_task_seed(request: LaunchRequest, job: Allocation | None) -> LaunchRequest:
    """Return the request with the seed of this task, in a job array over seeds."""
    text = request.launch.slurm.array
    if text is None:
        return request
    task = job.array_task if job is not None else None
    if task not in ArraySeeds.parse(text).numbers:
        found = "is in no job array" if task is None else f"is task {task} of one"
        raise ConfigError(
            [Problem(f"--array {text}", f"this job {found}: submit it with sbatch --array={text} as well")]
        )
    return replace(request, overrides=(*request.overrides, f"seed={task}"))
