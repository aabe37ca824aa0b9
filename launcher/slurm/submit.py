"""Submits a batch job: checks, writes the run directories and the source snapshot, calls sbatch, follows the job."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from fmfsd.cost.cost_report import Device
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.check.image_storage import add_image_memory
from launcher.check.launch_checks import find_problems_without_config, find_warnings, is_prepared, require_valid_launch
from launcher.config.array_seeds import ArraySeeds, seed_run_dir
from launcher.config.packaged_files import packaged_folder
from launcher.launch_request import LaunchRequest, load_request_config, prepare_command, resolve_run_dir
from launcher.plan.launch_plan import plan_run
from launcher.resources.config_cost import Costs, probe_costs
from launcher.run_dir.batch_jobs import add_job, read_jobs
from launcher.run_dir.manifest import mask_command, new_launch_entry
from launcher.run_dir.run_lock import hold_run_lock
from launcher.slurm.batch_job import SCRIPT, JobTask, Submission, build_submission, find_problems
from launcher.supervise.run_dir_init import is_finished, write_run_dir
from launcher.transport import slurm_commands
from launcher.transport.local_commands import run_foreground


def submit(request: LaunchRequest, *, environment: Mapping[str, str], cwd: str, argv: Sequence[str]) -> int:
    """Submit the job of `request` and return the exit code. Raises ConfigError or CheckError before the submission."""
    folder = resolve_run_dir(request, cwd)
    tasks = _make_tasks(request, folder, environment, cwd)
    costs = _estimate_costs(request, tasks[0], environment)
    check = partial(_require_sound, request, folder, tasks, costs)
    check()
    job = build_submission(request, folder, tasks, environment=environment, cwd=cwd)
    if request.stop_after == "plan":
        print((job.to_json() if request.as_json else job.render()).rstrip())
        return 0
    report = partial(print, file=sys.stderr if request.as_json else sys.stdout, flush=True)
    _require_no_other_job(tasks)
    estimate = _test_submission(job)
    if request.stop_after == "check":
        message = f"all checks passed: {job.plan.summary()}; {estimate}\n{costs.render(sys.stdout)}"
        print(costs.add_to_plan(job.to_json()) if request.as_json else message)
        return 0
    for text in find_warnings(tasks[0].config, request.launch, request.site, tasks[0].run, costs=costs):
        report(f"warning: {text}")
    report(f"run: {folder.path}")
    if all(is_finished(task.config, task.run) for task in tasks):
        report("this run is finished; nothing to do")
        return 0
    _prepare_data(job, check)
    return _submit(request, job, argv, report)


def _make_tasks(
    request: LaunchRequest, folder: RunDir, environment: Mapping[str, str], cwd: str
) -> tuple[JobTask, ...]:
    text = request.launch.slurm.array
    seeds = ArraySeeds.parse(text).numbers if text else (None,)

    def task(seed: int | None) -> JobTask:
        run = folder if seed is None else seed_run_dir(folder, seed)
        config = load_request_config(request, () if seed is None else (f"seed={seed}",))
        prepare = prepare_command(config)
        plan = plan_run(request.launch, request.site, run, environment=environment, cwd=cwd, prepare=prepare)
        return JobTask(run, config, plan, seed)

    try:
        return tuple(map(task, seeds))
    except ConfigError as error:
        others = find_problems_without_config(request.launch, request.site, folder)
        raise ConfigError([*error.problems, *others]) from error


def _estimate_costs(request: LaunchRequest, task: JobTask, environment: Mapping[str, str]) -> Costs:
    """Estimate costs by one task; they do not depend on the seed."""
    if request.stop_after == "plan":
        return Costs()
    device: Device = "cuda" if task.plan.device == "cuda" else "cpu"
    workers, wrap = task.plan.num_workers, request.launch.wrap
    costs = probe_costs(
        task.config, request.config_arguments, workers=workers, environment=environment, device=device, wrap=wrap
    )
    return add_image_memory(costs, task.config, request.launch, request.site)


def _require_sound(request: LaunchRequest, folder: RunDir, tasks: tuple[JobTask, ...], costs: Costs) -> None:
    """Raise all problems of all tasks, each once: ConfigError if any is of the config, else CheckError."""
    config_problems, check_problems = list(find_problems(request, folder, tasks)), list[Problem]()
    for number, task in enumerate(tasks):
        try:
            size = request.max_checksum_bytes if number == 0 else 0
            require_valid_launch(task.config, request.launch, request.site, task.run, checksums_bytes=size, costs=costs)
        except ConfigError as error:
            config_problems += error.problems
        except CheckError as error:
            check_problems += error.problems
    if config_problems:
        raise ConfigError(list(dict.fromkeys([*config_problems, *check_problems])))
    if check_problems:
        raise CheckError(list(dict.fromkeys(check_problems)))


def _require_no_other_job(tasks: tuple[JobTask, ...]) -> None:
    busy = []
    for task in tasks:
        for job in read_jobs(task.run)[-1:]:
            state = slurm_commands.query_job_state(job.reference)
            if state is not None and not state.is_over:
                remedy = f"wait for it, or cancel it with fmfsd-launch cancel {task.run.path}"
                busy.append(Problem(str(task.run.path), f"{state}: {remedy}"))
    if busy:
        raise CheckError(busy)


def _test_submission(job: Submission) -> str:
    """Return Slurm's estimate by `sbatch --test-only`, with the packaged script, as the snapshot is not written yet."""
    copy = str(job.snapshot.folder_in(job.folder.source) / SCRIPT)
    here = str(packaged_folder("cluster") / "train.sbatch")
    arguments = [here if part == copy else part for part in job.arguments]
    try:
        return slurm_commands.dry_run_submit(arguments, environment=job.environment, cwd=job.cwd)
    except CheckError as error:
        if job.plan.device == "cuda":
            hint = "; workers without GPUs: --device cpu; GPUs of a type: --sbatch-arg gpus-per-node=TYPE:N"
            raise CheckError(f"{error}{hint}") from error
        raise


def _prepare_data(job: Submission, check: partial[None]) -> None:
    """Prepare the data on this host, as compute nodes may have no internet access."""
    if job.plan.prepare and not is_prepared(job.tasks[0].config):
        if code := run_foreground(job.plan.prepare, stop=lambda: False):
            raise CheckError(f"the data set was not prepared (exit code {code}); nothing was submitted")
        check()


def _submit(request: LaunchRequest, job: Submission, argv: Sequence[str], report: partial[None]) -> int:
    attempts = [task.run.last_attempt() for task in job.tasks]
    with remove_new_runs_on_failure(job.tasks):
        _write(request, job, argv, report)
        submitted = slurm_commands.submit(job.arguments, environment=job.environment, cwd=job.cwd)
    number, cluster = slurm_commands.split_job_reference(submitted)
    for task in job.tasks:
        add_job(task.run, task.job_id_in(submitted), command=mask_command(argv), log=task.log_path(number))
    report(f"site script: {job.snapshot.site_script}")
    where = f" to cluster {cluster}" if cluster else ""
    report(f"submitted job {number}{where}; its log is {job.tasks[0].log_path(number)}")
    code = 0
    if request.launch.slurm.wait:
        from launcher.slurm.follow import FollowedJob, follow_jobs

        code = follow_jobs(
            [
                FollowedJob(task.job_id_in(submitted), task.log_path(number), task.run, before)
                for task, before in zip(job.tasks, attempts, strict=True)
            ],
            report,
        )
    if request.as_json:
        print(json.dumps(_to_dict(job, number, code) | ({"cluster": cluster} if cluster else {})))
    return code


def _to_dict(job: Submission, number: str, code: int) -> dict[str, Any]:
    runs = [
        {"job": task.job_id_in(number), "run_dir": str(task.run.path), "log": str(task.log_path(number))}
        for task in job.tasks
    ]
    return {"job": number, "run_dir": str(job.folder.path), "exit_code": code, "runs": runs}


@contextmanager
def remove_new_runs_on_failure(tasks: Sequence[JobTask]) -> Iterator[None]:
    """Remove the files of new runs if the block fails, unless Slurm may have accepted the job."""
    fresh = [task.run for task in tasks if not task.run.config.exists()]
    try:
        yield
    except slurm_commands.SlurmTimeoutError as error:
        raise CheckError(f"{error}; it may still have accepted the job: check with squeue --me") from error
    except BaseException:
        for run in fresh:
            _remove_run_files(run)
        raise


def _write(request: LaunchRequest, job: Submission, argv: Sequence[str], report: partial[None]) -> None:
    """Write the run directories and the snapshot; hold one lock at a time, as the limit of open files may be small."""
    for task in job.tasks:
        with hold_run_lock(task.run):
            write_run_dir(task.config, task.run, task.plan, request.launch, new_launch_entry(argv), report=report)
            task.run.owner.unlink(missing_ok=True)  # the owner will be the job
    try:
        job.folder.source.mkdir(parents=True, exist_ok=True, mode=0o700)
        job.snapshot.write(job.folder.source)
    except OSError as error:
        raise CheckError(f"the run directory can't be written: {error}") from error


def _remove_run_files(run: RunDir) -> None:
    """Remove what was written for a new run, so that it can be submitted again with another config."""
    with suppress(OSError):
        for path in (run.config, run.launch, run.manifest, run.plan):
            path.unlink(missing_ok=True)
        shutil.rmtree(run.source, ignore_errors=True)
