"""A batch job as a value: the sbatch arguments and environment, the runs that it executes, and its source snapshot."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmfsd.config import RunConfig
from fmfsd.errors import ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.config.array_seeds import ArraySeeds
from launcher.config.environment import mask_secret
from launcher.config.packaged_files import packaged_folder
from launcher.plan.launch_plan import LaunchPlan
from launcher.slurm.job_options import (
    build_job_environment,
    build_launch_arguments,
    build_sbatch_options,
    parse_time_limit,
    warning_lead_s,
)
from launcher.slurm.source_snapshot import SITE_SCRIPT, SourceSnapshot
from launcher.transport import slurm_commands

if TYPE_CHECKING:
    from launcher.launch_request import LaunchRequest

SCRIPT = "cluster/train.sbatch"


@dataclass(frozen=True)
class JobTask:
    """One run of a job: its only run, or the run of one seed of an array."""

    run: RunDir
    config: RunConfig
    plan: LaunchPlan
    seed: int | None = None

    def job_id_in(self, job: str) -> str:
        """Return the id of this task in `job`, as Slurm writes it."""
        return job if self.seed is None else slurm_commands.array_task_reference(job, self.seed)

    def log_path(self, job: str) -> Path:
        """Return the path of the batch script's log. `job`: a job id, or Slurm's pattern %j, or %A of an array."""
        return self.run.logs / f"slurm-{slurm_commands.split_job_reference(self.job_id_in(job))[0]}.log"


@dataclass(frozen=True)
class Submission:
    """A job to submit. `arguments` of sbatch: its options, the script, and the script's arguments."""

    folder: RunDir
    tasks: tuple[JobTask, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    snapshot: SourceSnapshot

    @property
    def plan(self) -> LaunchPlan:
        """The plan that the job executes; the first task's for an array."""
        return self.tasks[0].plan

    def render(self) -> str:
        """Render the sbatch command, the batch script, and the plan that is executed inside the job."""
        script = (packaged_folder("cluster") / "train.sbatch").read_text("utf-8").rstrip()
        variables = [
            f"{name}={shlex.quote(mask_secret(name, value))}" for name, value in sorted(self.environment.items())
        ]
        command = " \\\n    ".join(["env -i", *variables, shlex.join(("sbatch", *self.arguments))])
        copies = f"# the program is copied to {self.snapshot.folder_in(self.folder.source)} first"
        site = f"# {SITE_SCRIPT} is {self.snapshot.site_script}"
        return "\n".join([copies, site, command, f"# {SCRIPT}", script, "# inside the job", self.plan.render()])

    def to_json(self) -> str:
        content: dict[str, Any] = {
            "sbatch": list(self.arguments),
            "env": {name: mask_secret(name, value) for name, value in sorted(self.environment.items())},
            "source": str(self.snapshot.folder_in(self.folder.source)),
            "plan": json.loads(self.plan.to_json()),
        }
        return json.dumps(content, indent=2) + "\n"


def build_submission(
    request: "LaunchRequest",
    folder: RunDir,
    tasks: tuple[JobTask, ...],
    *,
    environment: Mapping[str, str],
    cwd: str,
) -> Submission:
    """Build the job that runs `tasks`. `cwd`: its working directory. ConfigError if the site script is missing."""
    launch, plan = request.launch, tasks[0].plan
    snapshot = SourceSnapshot.from_running_program(_site_script(folder, environment, cwd))
    source, seeds = (
        snapshot.folder_in(folder.source),
        ArraySeeds.parse(launch.slurm.array) if launch.slurm.array else None,
    )
    options = build_sbatch_options(
        launch,
        workers=plan.workers_per_node,
        device=plan.device,
        cores=request.site.resources.cores,
        name=folder.path.name,
        cwd=cwd,
        log=folder.logs / "slurm-%j.log" if seeds is None else folder.path / "seed-%a" / "logs" / "slurm-%A_%a.log",
        lead=max(warning_lead_s(task.run) for task in tasks),
        seeds=seeds,
    )
    launch_arguments = build_launch_arguments(
        launch, tasks[0].run.config, folder.path, workers=plan.workers_per_node, device=plan.device
    )
    arguments = (*options, str(source / SCRIPT), *launch_arguments)
    return Submission(folder, tasks, arguments, build_job_environment(launch, source, environment), cwd, snapshot)


def _site_script(folder: RunDir, environment: Mapping[str, str], cwd: str) -> Path | None:
    """Return the user's `env.sh`: of $FMFSD_CLUSTER_DIR, else of ./cluster, else of the run's previous job.

    None: there is none. ConfigError if the variable names a folder without one.
    """
    if named := environment.get("FMFSD_CLUSTER_DIR"):
        script = Path(cwd, named, "env.sh")
        if not script.is_file():
            raise ConfigError(
                [Problem(f"FMFSD_CLUSTER_DIR={named}", "has no env.sh: create it, or unset the variable")]
            )
        return script
    here = Path(cwd, "cluster", "env.sh")
    previous = sorted(folder.source.glob(f"*/{SITE_SCRIPT}"), key=lambda path: path.stat().st_mtime)
    return here if here.is_file() else previous[-1] if previous else None


def find_problems(request: "LaunchRequest", folder: RunDir, tasks: tuple[JobTask, ...]) -> Iterator[Problem]:
    """Yield the problems of a job that do not depend on the training config."""
    time = request.launch.slurm.time
    lead, limit_s = max(warning_lead_s(task.run) for task in tasks), parse_time_limit(time) if time else None
    if limit_s is not None and limit_s <= lead:
        yield Problem(
            "--time", f"{time} must exceed {lead} s, the time before the job's end at which the run is stopped"
        )
    if {"%", "\\"} & set(str(folder.path)):
        yield Problem(str(folder.path), "Slurm writes no log into a folder with % or \\ in its path: choose another")
