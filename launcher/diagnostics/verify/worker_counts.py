"""The runs of a comparison: a launch, a run directory and a plan for each number of workers, or all problems."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fmfsd.errors import ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from launcher.check.data_checks import uneven_shares_problem
from launcher.config.error_collector import collect_all
from launcher.config.launch_config import LaunchConfig
from launcher.diagnostics.short_run import short_run_dir, shorten
from launcher.launch_request import CheckedLaunch, LaunchRequest, check_request, load_request_config, prepare_command
from launcher.plan.launch_plan import LaunchPlan, plan_run

_COUNT = re.compile(r"[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class ComparedRun:
    """A run by the number of workers and nodes in `launch`. `check` repeats the checks after its data was prepared."""

    launch: LaunchConfig
    run: RunDir
    found: CheckedLaunch
    check: Callable[[], CheckedLaunch]
    plan_of: Callable[..., LaunchPlan]

    @property
    def plan(self) -> LaunchPlan:
        return self.plan_of()


def parse_worker_counts(text: str) -> tuple[int, ...]:
    """Read two or more different numbers of workers, such as `1,2,4`. ConfigError for anything else."""
    numbers = text.split(",")
    if len(set(numbers)) < max(2, len(numbers)) or not all(map(_COUNT.fullmatch, numbers)):
        raise ConfigError(f"--workers {text!a}: expected two or more different numbers of workers, as in 1,2,4")
    return tuple(map(int, numbers))


def compared_runs(
    request: LaunchRequest, counts: Sequence[int], steps: int, *, environment: Mapping[str, str], cwd: str
) -> list[ComparedRun]:
    """Return a run for each number of workers. ConfigError or CheckError with all problems of all of them."""
    folder = short_run_dir(request, cwd, "verify")
    try:
        short, shards = _short(request, steps)
    except ConfigError:
        short, shards = request, None  # the checks report it together with other problems
    impossible = {workers: list(_impossible(request, workers, shards)) for workers in counts}
    wrong = [*_existing(folder), *(problem for each in impossible.values() for problem in each)]
    possible = [workers for workers, problems in impossible.items() if not problems] or ([1] if shards is None else [])
    run = partial(_compared_run, short, folder.path, environment, cwd)
    return collect_all((partial(run, workers) for workers in possible), other_problems=wrong)


def _short(request: LaunchRequest, steps: int) -> tuple[LaunchRequest, int]:
    """Return the request shortened to `steps` steps that all log their losses, and the number of data shards."""
    config = load_request_config(request)
    changes = (*shorten(config, steps), "train.log_every=1 step")
    return replace(request, overrides=(*request.overrides, *changes)), config.data.shards


def _existing(folder: RunDir) -> Iterator[Problem]:
    if not folder.is_unused():
        yield Problem(str(folder.path), "exists, and a comparison needs new runs: use another --run-dir")


def _impossible(request: LaunchRequest, workers: int, shards: int | None) -> Iterator[Problem]:
    where, gpus = f"--workers {workers}", len(request.site.resources.gpus)
    if request.site.placement(request.launch)[0] == "cuda" and workers > gpus:
        yield Problem(where, f"needs as many GPUs, {gpus} are visible: leave it out, or use --device cpu")
    if shards is not None and (message := uneven_shares_problem(workers, shards)):
        yield Problem(where, message)


def _compared_run(
    request: LaunchRequest, folder: Path, environment: Mapping[str, str], cwd: str, workers: int
) -> ComparedRun:
    """Use as many of the launch's nodes as divide the workers evenly."""
    nodes = math.gcd(workers, request.launch.nodes)
    launch = replace(request.launch, nodes=nodes, gpus=workers // nodes, run_dir=None)
    run = RunDir(folder / f"w{workers}")
    check = partial(check_request, replace(request, launch=launch), run, environment, cwd)
    found = check()
    planned = partial(
        plan_run, launch, found.site, run, environment=environment, cwd=cwd, prepare=prepare_command(found.config)
    )
    return ComparedRun(launch, run, found, check, lambda *slots: _traced(planned(*slots)))


def _traced(plan: LaunchPlan) -> LaunchPlan:
    return replace(plan, nodes=tuple(replace(node, env={**node.env, "FMFSD_TRACE": "1"}) for node in plan.nodes))
