"""Checks of a sweep before Ray starts. They report all problems at once."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fmfsd.config import RunConfig
from fmfsd.errors import CheckError, ConfigError, Problem
from launcher.agent.available_resources import Resources
from launcher.check import host_checks, run_checks
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.resources.config_cost import Costs
from launcher.resources.host_probe import UnreachableError, probe_hosts
from launcher.resources.site import Site
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.ray.cluster_resources import probe_machines
from launcher.tune.records.trial_resources import TrialResources
from launcher.tune.sampling.sampler import default_search, find_search_problems
from launcher.tune.space.load import Space
from launcher.tune.space.metrics import list_metric_names
from launcher.tune.sweep.disk_budget import DiskBudget

_PACKAGES = ("ray", "optuna")
_METRIC_PATTERN = re.compile(r"(valid|cost)/[a-z0-9_]+")
_ADDRESS_PATTERN = re.compile(r"auto|(?!ray://)\S+:[0-9]{1,5}")
_HEAD_KEYS = ("method", "model.branches", "model.fusion")
"""Config keys that determine which heads a run has."""
_METRICS_OF_EVERY_RUN = ("valid/deepest_top1", "valid/loss")


def resolve_options(space: Space, cli_options: Mapping[str, Any]) -> TuneOptions:
    """Return the options of the command line, completed with what the space suggests.

    Raise ConfigError if the number of modes differs from the number of metrics.
    """
    options = TuneOptions(**{"trials": space.trials, "search": default_search(space), **cli_options})
    if "modes" not in cli_options:
        return replace(options, modes=tuple(map(_default_mode, options.metrics)))
    if len(options.modes) != len(options.metrics):
        counts = f"{len(options.modes)} for {len(options.metrics)} metrics"
        raise ConfigError([Problem("--mode", f"{counts}: give one for each --metric, in the same order, or none")])
    return options


def _default_mode(metric: str) -> Literal["max", "min"]:
    return "max" if metric.endswith("_top1") else "min"


def require_valid_search(space: Space, options: TuneOptions, sweep: SweepDir, *, is_new: bool = True) -> None:
    """Raise ConfigError for problems of the search, CheckError if only this machine has problems."""
    wrong = [
        *_metric_problems(options),
        *find_search_problems(options.search, options, space),
        *_scheduler_problems(options),
        *_address_problems(options),
        *_folder_problems(sweep, is_new),
    ]
    missing = [*_missing_packages(), *run_checks.check_not_in_use(sweep.coordinator_dir)]
    if wrong:
        raise ConfigError([*wrong, *missing])
    if missing:
        raise CheckError(missing)


def _metric_problems(options: TuneOptions) -> Iterator[Problem]:
    for metric in options.metrics:
        if metric.startswith("test/"):
            message = "the test set is evaluated only for the winners, at the end: search on a valid/ metric"
            yield Problem(f"--metric {metric}", message)
        elif not _METRIC_PATTERN.fullmatch(metric):
            yield Problem(f"--metric {metric!a}", "expected a name such as valid/deepest_top1 or cost/train_macs")
        elif options.metrics.count(metric) > 1:
            yield Problem(f"--metric {metric}", "is given more than once")


def _scheduler_problems(options: TuneOptions) -> Iterator[Problem]:
    if options.scheduler != "none" and len(options.metrics) > 1:
        yield Problem("--scheduler", f"{options.scheduler} needs exactly one metric: set --scheduler none")
    if options.scheduler != "none" and options.metrics[0].startswith("cost/"):
        yield Problem("--scheduler", f"{options.metrics[0]} does not change during a trial: set --scheduler none")


def _address_problems(options: TuneOptions) -> Iterator[Problem]:
    if options.ray_address is not None and not _ADDRESS_PATTERN.fullmatch(options.ray_address):
        message = "expected auto or HOST:PORT of the cluster's head; Ray Client (ray://) is not supported"
        yield Problem(f"--ray-address {options.ray_address!a}", message)


def _folder_problems(sweep: SweepDir, is_new: bool) -> Iterator[Problem]:
    if is_new and sweep.ledger.exists():
        yield Problem(str(sweep.path), f"exists: resume it with --resume {sweep.path}, or choose another --sweep-dir")
    elif is_new and not sweep.coordinator_dir.is_unused():
        yield Problem(str(sweep.path), "exists and is not a sweep: choose another --sweep-dir")


def _missing_packages() -> Iterator[Problem]:
    for package in _PACKAGES:
        if find_spec(package) is None:
            yield Problem(package, "is not installed: `pip install 'fmfsd[tune]'`")


def require_metrics(options: TuneOptions, space: Space, costs: Costs) -> None:
    """Raise ConfigError for a metric that not every run of the space writes; check nothing without a cost probe."""
    if costs.probe is None:
        return
    varies = [parameter.key for parameter in space.parameters if parameter.key in _HEAD_KEYS]
    written = [
        name
        for name in list_metric_names(costs.probe)
        if not varies or name in _METRICS_OF_EVERY_RUN or name.startswith("cost/")
    ]
    why = (
        f"not every trial writes it, because {', '.join(varies)} varies"
        if varies
        else "no run of this config writes it"
    )
    unknown = [name for name in options.metrics if name not in written]
    if unknown:
        message = f"{why}; written by every trial: {', '.join(written)}"
        raise ConfigError([Problem(f"--metric {name}", message) for name in unknown])


def list_machines(site: Site, options: TuneOptions, sweep: SweepDir, *, probe_ray: bool) -> list[Resources]:
    """Return the resources of each machine for trials.

    A Ray cluster is probed only with `probe_ray`; otherwise it is assumed to have the resources of this machine. Raise
    CheckError if a cluster does not answer, or does not see the sweep's files.
    """
    if options.ray_address is not None:
        return probe_machines(options.ray_address, sweep) if probe_ray else [site.resources]
    return [site.resources] * max(1, len(site.hosts))


def probe_site(site: Site, launch: LaunchConfig, folder: Path, environment: Mapping[str, str], cwd: str) -> Site:
    """Return `site` with the hosts of the allocation that answer and the minimum of their resources.

    `launch` is the launch config of a trial, `folder` the folder of the sweep. Raise CheckError if no host answers, or
    if a host has other software or does not see the same files.
    """
    probed = probe_hosts(site, environment, run=folder, cwd=cwd, index=None)
    reachable = probed.select(tuple(probed.answers)) if probed.answers else probed
    if problems := list(host_checks.check_hosts(LaunchConfig(device=launch.device), reachable)):
        raise (UnreachableError if reachable.failures else CheckError)(problems)
    return replace(reachable.apply_to(site), hosts=tuple(reachable.answers) or site.hosts)


def require_disk_space(
    sweep: SweepDir, options: TuneOptions, config: RunConfig, costs: Costs, resources: TrialResources
) -> None:
    """Raise CheckError if the disk or the disk budget is too small."""
    if problems := list(
        DiskBudget.estimate(sweep, options, config, costs, concurrent=resources.concurrent).find_problems()
    ):
        raise CheckError(problems)
