"""Submits a batch job: checks, writes the runs' folders and a copy of the program into them, hands over, follows."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from fmfsd.cost.estimate import Device
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.check.image_storage import counted
from launcher.check.launch_checks import is_prepared, problems_of_any_config, require_sound, warnings
from launcher.config.array_seeds import Seeds, run_of
from launcher.config.packaged_files import shipped_folder
from launcher.plan.plan import plan_run
from launcher.prepare_launch import Request, config_of, prepare_command, run_dir_of
from launcher.resources.cost_probe import Costs, costs_of
from launcher.run_dir.batch_jobs import add_job, jobs_of
from launcher.run_dir.manifest import launch_entry, masked
from launcher.run_dir.run_lock import sole_owner
from launcher.slurm.batch_job import SCRIPT, Submission, Task, problems, submission
from launcher.supervise.run_dir_init import is_finished, write_run_dir
from launcher.transport import slurm_commands
from launcher.transport.local_commands import run_here


def submit(request: Request, *, environment: Mapping[str, str], cwd: str, argv: Sequence[str]) -> int:
    """The exit code. ConfigError or CheckError while nothing is submitted."""
    folder = run_dir_of(request, cwd)
    tasks = _tasks(request, folder, environment, cwd)
    costs = _costs(request, tasks[0], environment)
    check = partial(_require_sound, request, folder, tasks, costs)
    check()
    job = submission(request, folder, tasks, environment=environment, cwd=cwd)
    if request.stop_after == "plan":
        print((job.to_json() if request.as_json else job.render()).rstrip())
        return 0
    say = partial(print, file=sys.stderr if request.as_json else sys.stdout, flush=True)
    _require_no_other_job(tasks)
    estimate = _tried_out(job)
    if request.stop_after == "check":
        sound = f"nothing is wrong: {job.plan.summary()}; {estimate}\n{costs.text(sys.stdout)}"
        print(costs.beside(job.to_json()) if request.as_json else sound)
        return 0
    for text in warnings(tasks[0].config, request.launch, request.site, tasks[0].run, costs=costs):
        say(f"warning: {text}")
    say(f"run: {folder.path}")
    if all(is_finished(task.config, task.run) for task in tasks):
        say("this run is finished; nothing to do")
        return 0
    _prepare(job, check)
    return _hand_over(request, job, argv, say)


def _tasks(request: Request, folder: RunDir, environment: Mapping[str, str], cwd: str) -> tuple[Task, ...]:
    text = request.launch.slurm.array
    seeds = Seeds.parse(text).numbers if text else (None,)

    def task(seed: int | None) -> Task:
        run = folder if seed is None else run_of(folder, seed)
        config = config_of(request, () if seed is None else (f"seed={seed}",))
        prepare = prepare_command(config)
        plan = plan_run(request.launch, request.site, run, environment=environment, cwd=cwd, prepare=prepare)
        return Task(run, config, plan, seed)

    try:
        return tuple(map(task, seeds))
    except ConfigError as error:
        others = problems_of_any_config(request.launch, request.site, folder)
        raise ConfigError([*error.problems, *others]) from error


def _costs(request: Request, task: Task, environment: Mapping[str, str]) -> Costs:
    """A seed changes nothing of it."""
    if request.stop_after == "plan":
        return Costs()
    device: Device = "cuda" if task.plan.device == "cuda" else "cpu"
    workers, wrap = task.plan.num_workers, request.launch.wrap
    costs = costs_of(task.config, request.words, workers=workers, environment=environment, device=device, wrap=wrap)
    return counted(costs, task.config, request.launch, request.site)


def _require_sound(request: Request, folder: RunDir, tasks: tuple[Task, ...], costs: Costs) -> None:
    """Everything that is wrong, of all tasks; each thing once."""
    found, checked = list(problems(request, folder, tasks)), list[Problem]()
    for number, task in enumerate(tasks):
        try:
            size = request.checksums_bytes if number == 0 else 0
            require_sound(task.config, request.launch, request.site, task.run, checksums_bytes=size, costs=costs)
        except ConfigError as error:
            found += error.problems
        except CheckError as error:
            checked += error.problems
    if found:
        raise ConfigError(list(dict.fromkeys([*found, *checked])))
    if checked:
        raise CheckError(list(dict.fromkeys(checked)))


def _require_no_other_job(tasks: tuple[Task, ...]) -> None:
    wrong = []
    for task in tasks:
        for job in jobs_of(task.run)[-1:]:
            state = slurm_commands.job_state(job.reference)
            if state is not None and not state.is_over:
                way = f"wait for it, or end it with fmfsd-launch cancel {task.run.path}"
                wrong.append(Problem(str(task.run.path), f"{state}: {way}"))
    if wrong:
        raise CheckError(wrong)


def _tried_out(job: Submission) -> str:
    """With the script that travels with us, as the run's own copy is not there yet."""
    copy = str(job.snapshot.folder(job.folder.source) / SCRIPT)
    here = str(shipped_folder("cluster") / "train.sbatch")
    arguments = [here if part == copy else part for part in job.arguments]
    try:
        return slurm_commands.try_out(arguments, environment=job.environment, cwd=job.cwd)
    except CheckError as error:
        if job.plan.device == "cuda":
            hint = "; workers without GPUs: --device cpu; GPUs of a type: --sbatch-arg gpus-per-node=TYPE:N"
            raise CheckError(f"{error}{hint}") from error
        raise


def _prepare(job: Submission, check: partial[None]) -> None:
    """The data, here, as compute nodes may have no way out."""
    if job.plan.prepare and not is_prepared(job.tasks[0].config):
        if code := run_here(job.plan.prepare, stop=lambda: False):
            raise CheckError(f"the data set was not prepared (exit code {code}); nothing was submitted")
        check()


def _hand_over(request: Request, job: Submission, argv: Sequence[str], say: partial[None]) -> int:
    attempts = [task.run.last_attempt() for task in job.tasks]
    with all_or_nothing(job.tasks):
        _write(request, job, argv, say)
        submitted = slurm_commands.submit(job.arguments, environment=job.environment, cwd=job.cwd)
    number, cluster = slurm_commands.id_and_cluster(submitted)
    for task in job.tasks:
        add_job(task.run, task.id_in(submitted), command=masked(argv), log=task.log(number))
    say(f"site script: {job.snapshot.site_script}")
    where = f" to cluster {cluster}" if cluster else ""
    say(f"submitted job {number}{where}; it says what it does in {job.tasks[0].log(number)}")
    code = 0
    if request.launch.slurm.wait:
        from launcher.slurm.follow import Followed, follow

        code = follow(
            [
                Followed(task.id_in(submitted), task.log(number), task.run, before)
                for task, before in zip(job.tasks, attempts, strict=True)
            ],
            say,
        )
    if request.as_json:
        print(json.dumps(_told(job, number, code) | ({"cluster": cluster} if cluster else {})))
    return code


def _told(job: Submission, number: str, code: int) -> dict[str, Any]:
    runs = [
        {"job": task.id_in(number), "run_dir": str(task.run.path), "log": str(task.log(number))} for task in job.tasks
    ]
    return {"job": number, "run_dir": str(job.folder.path), "exit_code": code, "runs": runs}


@contextmanager
def all_or_nothing(tasks: Sequence[Task]) -> Iterator[None]:
    """Withdraw runs that are new if the block fails, unless Slurm may have taken the job."""
    fresh = [task.run for task in tasks if not task.run.config.exists()]
    try:
        yield
    except slurm_commands.NoAnswerError as error:
        raise CheckError(f"{error}; it may have taken the job all the same: squeue --me tells") from error
    except BaseException:
        for run in fresh:
            _withdraw(run)
        raise


def _write(request: Request, job: Submission, argv: Sequence[str], say: partial[None]) -> None:
    """One run's lock at a time: an array may have more seeds than a process may open files."""
    for task in job.tasks:
        with sole_owner(task.run):
            write_run_dir(task.config, task.run, task.plan, request.launch, launch_entry(argv), say=say)
            task.run.owner.unlink(missing_ok=True)  # it is the job that will be at work there
    try:
        job.folder.source.mkdir(parents=True, exist_ok=True, mode=0o700)
        job.snapshot.write(job.folder.source)
    except OSError as error:
        raise CheckError(f"the run directory can't be written: {error}") from error


def _withdraw(run: RunDir) -> None:
    """As if the run had never been: what Slurm did not take may be submitted anew with another config."""
    with suppress(OSError):
        for path in (run.config, run.launch, run.manifest, run.plan):
            path.unlink(missing_ok=True)
        shutil.rmtree(run.source, ignore_errors=True)
