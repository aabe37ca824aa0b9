"""Everything that can be known to be wrong with a search before Ray is touched; all of it at once."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fmfsd.config import RunConfig
from fmfsd.errors import CheckError, ConfigError, Problem
from launcher.agent.resources import Resources
from launcher.check import host_checks, run_checks
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.resources.cost_probe import Costs
from launcher.resources.host_probe import UnreachableError, survey
from launcher.resources.site import Site
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.ray.probe_cluster import machines_of
from launcher.tune.records.trial_resources import Shape
from launcher.tune.sampling.sampler import default_search, refused
from launcher.tune.space.load import Space
from launcher.tune.space.metrics import metric_names
from launcher.tune.sweep.disk_budget import DiskBudget

_PACKAGES = ("ray", "optuna")
_FORM = re.compile(r"(valid|cost)/[a-z0-9_]+")
_ADDRESS = re.compile(r"auto|(?!ray://)\S+:[0-9]{1,5}")
_HEADS = ("method", "model.branches", "model.fusion")
"""What decides which heads a run has."""
_ALWAYS = ("valid/deepest_top1", "valid/loss")


def options_of(space: Space, given: Mapping[str, Any]) -> TuneOptions:
    """What the command line names, else what the space suggests. ConfigError for modes that do not fit the metrics."""
    options = TuneOptions(**{"trials": space.trials, "search": default_search(space), **given})
    if "modes" not in given:
        return replace(options, modes=tuple(map(_mode, options.metrics)))
    if len(options.modes) != len(options.metrics):
        counts = f"{len(options.modes)} for {len(options.metrics)} metrics"
        raise ConfigError([Problem("--mode", f"{counts}: say one for each --metric, in their order, or none")])
    return options


def _mode(metric: str) -> Literal["max", "min"]:
    return "max" if metric.endswith("_top1") else "min"


def require_sound(space: Space, options: TuneOptions, sweep: SweepDir, *, is_new: bool = True) -> None:
    """ConfigError, or CheckError if just the machine is wrong."""
    wrong = [
        *_metrics(options),
        *refused(options.search, options, space),
        *_scheduler(options),
        *_address(options),
        *_folder(sweep, is_new),
    ]
    missing = [*_packages(), *run_checks.in_use(sweep.coordination)]
    if wrong:
        raise ConfigError([*wrong, *missing])
    if missing:
        raise CheckError(missing)


def _metrics(options: TuneOptions) -> Iterator[Problem]:
    for metric in options.metrics:
        if metric.startswith("test/"):
            message = "the test set is read for the winners alone, at the end: search on valid/"
            yield Problem(f"--metric {metric}", message)
        elif not _FORM.fullmatch(metric):
            yield Problem(f"--metric {metric!a}", "expected a name as valid/deepest_top1 or cost/train_macs")
        elif options.metrics.count(metric) > 1:
            yield Problem(f"--metric {metric}", "stands there twice")


def _scheduler(options: TuneOptions) -> Iterator[Problem]:
    if options.scheduler != "none" and len(options.metrics) > 1:
        yield Problem("--scheduler", f"{options.scheduler} needs one metric to compare trials by: set none")
    if options.scheduler != "none" and options.metrics[0].startswith("cost/"):
        yield Problem("--scheduler", f"{options.metrics[0]} does not change while a trial runs: set none")


def _address(options: TuneOptions) -> Iterator[Problem]:
    if options.ray_address is not None and not _ADDRESS.fullmatch(options.ray_address):
        message = "expected auto or HOST:PORT, where the cluster's head is; there is no search by Ray's client (ray://)"
        yield Problem(f"--ray-address {options.ray_address!a}", message)


def _folder(sweep: SweepDir, is_new: bool) -> Iterator[Problem]:
    if is_new and sweep.ledger.exists():
        yield Problem(str(sweep.path), f"exists: go on with it by --resume {sweep.path}, or choose another --sweep-dir")
    elif is_new and not sweep.coordination.is_unused():
        yield Problem(str(sweep.path), "exists and is no sweep: choose another --sweep-dir")


def _packages() -> Iterator[Problem]:
    for package in _PACKAGES:
        if find_spec(package) is None:
            yield Problem(package, "is not installed: `pip install 'fmfsd[tune]'`")


def require_metrics(options: TuneOptions, space: Space, costs: Costs) -> None:
    """ConfigError for a metric that not every run of the space will write; nothing is known without a probe."""
    if costs.probe is None:
        return
    varies = [parameter.key for parameter in space.parameters if parameter.key in _HEADS]
    written = [name for name in metric_names(costs.probe) if not varies or name in _ALWAYS or name.startswith("cost/")]
    why = f"not every trial writes it, as {', '.join(varies)} varies" if varies else "no run of this config writes it"
    unknown = [name for name in options.metrics if name not in written]
    if unknown:
        message = f"{why}; those that all write: {', '.join(written)}"
        raise ConfigError([Problem(f"--metric {name}", message) for name in unknown])


def machines(site: Site, options: TuneOptions, sweep: SweepDir, *, asks: bool) -> list[Resources]:
    """What there is for trials. CheckError if a cluster does not answer, or does not see the sweep's files.

    Unless it `asks`, a cluster is supposed to have what this machine has.
    """
    if options.ray_address is not None:
        return machines_of(options.ray_address, sweep) if asks else [site.resources]
    return [site.resources] * max(1, len(site.hosts))


def probe_site(site: Site, launch: LaunchConfig, folder: Path, environment: Mapping[str, str], cwd: str) -> Site:
    """Return the hosts of an allocation that answer, with what each has at least. `launch` is what a trial is like,
    `folder` is where the sweep will be.

    CheckError if none answers, or if one has other software or does not see the same files.
    """
    found = survey(site, environment, run=folder, cwd=cwd, index=None)
    known = found.of(tuple(found.seen)) if found.seen else found
    if problems := list(host_checks.problems(LaunchConfig(device=launch.device), known)):
        raise (UnreachableError if known.trouble else CheckError)(problems)
    return replace(known.told(site), hosts=tuple(known.seen) or site.hosts)


def require_room(sweep: SweepDir, options: TuneOptions, config: RunConfig, costs: Costs, shape: Shape) -> None:
    """CheckError if the disk or its budget is too small."""
    if refused := list(DiskBudget.of(sweep, options, config, costs, concurrent=shape.concurrent).refused()):
        raise CheckError(refused)
