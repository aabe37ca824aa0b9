"""The runs of a comparison: for each number of workers a launch, a folder and a plan, or everything that is wrong."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fmfsd.config.load import config_name
from fmfsd.errors import ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.check.data_checks import uneven
from launcher.config.error_collector import all_of
from launcher.config.launch_config import InvarianceOptions, LaunchConfig
from launcher.diagnostics.short_run import shortened
from launcher.plan.plan import LaunchPlan, plan_run
from launcher.prepare_launch import Checked, Request, checked, config_of, prepare_command, run_dir_of


@dataclass(frozen=True)
class Crew:
    """So many workers on so many nodes, as `launch` says, and the run that they make; `plan_of` plans it, and `check`
    is for when its data was prepared on the way."""

    launch: LaunchConfig
    run: RunDir
    found: Checked
    check: Callable[[], Checked]
    plan_of: Callable[..., LaunchPlan]

    @property
    def plan(self) -> LaunchPlan:
        return self.plan_of()


def crews_of(request: Request, options: InvarianceOptions, *, environment: Mapping[str, str], cwd: str) -> list[Crew]:
    """ConfigError or CheckError with everything that is wrong with any of them."""
    folder = _folder(request, cwd)
    try:
        short, shards = _short(request, options.steps)
    except ConfigError:
        short, shards = request, None  # the check finds it too, and what else is wrong
    impossible = {workers: list(_impossible(request, workers, shards)) for workers in options.workers}
    wrong = [*_misplaced(request, folder), *(problem for each in impossible.values() for problem in each)]
    possible = [workers for workers, problems in impossible.items() if not problems] or ([1] if shards is None else [])
    crew = partial(_crew, short, folder.path, environment, cwd)
    return all_of((partial(crew, workers) for workers in possible), beside=wrong)


def _folder(request: Request, cwd: str) -> RunDir:
    """What is asked for, else a new one."""
    if request.launch.run_dir is not None:
        return run_dir_of(request, cwd)
    return RunDir.fresh(Path(cwd) / "runs", f"{config_name(request.config)}-invariance")


def _short(request: Request, steps: int) -> tuple[Request, int]:
    """The same for so many steps, of each of which the losses are logged; and the shards of its data."""
    config = config_of(request)
    changes = (*shortened(config, steps), "train.log_every=1 step")
    return replace(request, overrides=(*request.overrides, *changes)), config.data.shards


def _misplaced(request: Request, folder: RunDir) -> Iterator[Problem]:
    if not request.site.is_here:
        yield Problem("--verify-invariance", "runs on this machine, and this is a job's or other hosts: say --on local")
    if not folder.is_unused():
        message = "exists, and --verify-invariance makes runs of its own: choose another --run-dir"
        yield Problem(str(folder.path), message)


def _impossible(request: Request, workers: int, shards: int | None) -> Iterator[Problem]:
    where, gpus = f"--verify-invariance {workers}", len(request.site.resources.gpus)
    if request.site.placement(request.launch)[0] == "cuda" and workers > gpus:
        yield Problem(where, f"as many GPUs are needed, {gpus} visible: leave it out, or set --device cpu")
    if shards is not None and (message := uneven(workers, shards)):
        yield Problem(where, message)


def _crew(request: Request, folder: Path, environment: Mapping[str, str], cwd: str, workers: int) -> Crew:
    """On as many of the launch's nodes as share the workers evenly."""
    nodes = math.gcd(workers, request.launch.nodes)
    launch = replace(request.launch, nodes=nodes, gpus=workers // nodes, run_dir=None)
    run = RunDir(folder / f"w{workers}")
    check = partial(checked, replace(request, launch=launch), run, environment, cwd)
    found = check()
    planned = partial(
        plan_run, launch, found.site, run, environment=environment, cwd=cwd, prepare=prepare_command(found.config)
    )
    return Crew(launch, run, found, check, lambda *slots: _traced(planned(*slots)))


def _traced(plan: LaunchPlan) -> LaunchPlan:
    return replace(plan, nodes=tuple(replace(node, env={**node.env, "FMFSD_TRACE": "1"}) for node in plan.nodes))
