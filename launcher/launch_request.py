"""The request for a launch: its config, its run directory, and the checks that it has to pass."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from fmfsd.config import RunConfig, load_config
from fmfsd.config.load import InvalidConfigError, config_name
from fmfsd.config.names import FOLDER
from fmfsd.config.schema import validate_path
from fmfsd.cost.cost_report import Device
from fmfsd.data.shards.index import CHECKED_AT_LAUNCH_BYTES, prepared_set_folder
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.cache_dir import cache_note
from launcher.check.image_storage import add_image_memory, describe_image_storage
from launcher.check.launch_checks import (
    find_config_problems,
    find_problems_without_config,
    find_warnings,
    is_prepared,
    require_valid_launch,
    require_visible,
)
from launcher.config.array_seeds import seed_run_dir
from launcher.config.launch_config import LaunchConfig
from launcher.plan.launch_plan import LaunchPlan, forwarded_variables_for
from launcher.resources.allocation import Allocation
from launcher.resources.config_cost import Costs, probe_costs
from launcher.resources.elasticity import slots_to_use
from launcher.resources.host_probe import HostProbe, UnreachableError, probe_hosts
from launcher.resources.site import Site
from launcher.supervise.run_dir_init import is_finished


@dataclass(frozen=True)
class LaunchRequest:
    """A launch as requested on the command line."""

    config: str
    overrides: tuple[str, ...]
    launch: LaunchConfig
    site: Site
    stop_after: Literal["check", "plan", "run"]
    as_json: bool
    data_root: str = "data"
    checks_all_data: bool = False

    @property
    def max_checksum_bytes(self) -> float:
        """The largest size of a data set whose checksums are verified."""
        if self.checks_all_data:
            return math.inf
        return 0 if self.stop_after == "plan" else CHECKED_AT_LAUNCH_BYTES

    @property
    def config_arguments(self) -> list[str]:
        """The config and its overrides as command-line arguments."""
        return [*(part for override in self.overrides for part in ("--set", override)), "--", self.config]


@dataclass(frozen=True)
class CheckedLaunch:
    """A launch that has passed all checks: its config, its probed site, its costs and warnings."""

    config: RunConfig
    site: Site
    costs: Costs
    warnings: Sequence[str]
    images: str = ""
    """Where the images are stored, if not in memory."""
    hosts: HostProbe = field(default_factory=HostProbe)
    slots: tuple[int, ...] | None = None
    """The node slots to start with, if some nodes of an elastic launch do not answer; None: all."""

    def render(self, plan: LaunchPlan) -> str:
        """Return the result of --check as text."""
        name, root = self.config.data.name, self.config.data.root
        data = f"{name} is prepared in {root}" if is_prepared(self.config) else f"{name} is prepared first, in {root}"
        summary = "; ".join(filter(None, [plan.summary(), data, self.images]))
        return f"all checks passed: {summary}\n{self.costs.render(sys.stdout)}"


def check_request(request: LaunchRequest, run: RunDir, environment: Mapping[str, str], cwd: str) -> CheckedLaunch:
    """Check a request. ConfigError or CheckError with all problems. A dry run queries neither hosts nor torch."""
    launch = request.launch
    probe = partial(_probe_hosts, request, run, environment, cwd)
    try:
        config = load_request_config(request)
    except ConfigError as error:
        hosts = probe(None)
        site = hosts.apply_to(request.site)
        others = find_problems_without_config(launch, site, run, hosts)
        raise ConfigError([*error.problems, *_find_other_problems(error, run, launch, site), *others]) from error
    hosts = probe(config)
    whole_site = hosts.apply_to(request.site)
    slots, elastic_notes = _choose_slots(launch, whole_site, hosts, config.data.shards)
    launch, site = replace(launch, nodes=len(slots)), replace(whole_site, hosts=whole_site.hosts_of(slots))
    hosts = hosts if site.is_here else hosts.select(site.hosts)
    require_visible(run)
    is_dry = request.stop_after == "plan"
    costs = Costs() if is_dry else _probe_costs(replace(request, launch=launch), config, run, site, environment)
    costs = add_image_memory(costs, config, launch, site)
    try:
        require_valid_launch(
            config, launch, site, run, checksums_bytes=request.max_checksum_bytes, host_probe=hosts, costs=costs
        )
    except CheckError as error:
        if hosts.failures:
            raise UnreachableError(error.problems) from error
        raise
    notes = [cache_note(environment), *elastic_notes, *find_warnings(config, launch, site, run, hosts, costs)]
    return CheckedLaunch(
        config, whole_site, costs, list(filter(None, notes)), describe_image_storage(config, launch, site), hosts, slots
    )


def _find_other_problems(error: ConfigError, run: RunDir, launch: LaunchConfig, site: Site | None) -> list[Problem]:
    """Return further problems of a config with invalid values, found without these values."""
    if not isinstance(error, InvalidConfigError):
        return []
    return find_config_problems(error.draft, run, launch, site, unknown=error.invalid_keys)


def find_problems_without_site(
    source: str, changes: Sequence[str], launch: LaunchConfig, *, data_root: str, cwd: str
) -> list[Problem]:
    """Return the problems of a config, its data and its initial weights where the site is unknown."""
    run = RunDir(Path(cwd, launch.run_dir or "runs/new"))
    try:
        config = load_config(source, changes, data_root=data_root)
    except ConfigError as error:
        return [*error.problems, *_find_other_problems(error, run, launch, None)]
    return find_config_problems(config, run, launch, None)


def _choose_slots(launch: LaunchConfig, site: Site, hosts: HostProbe, shards: int) -> tuple[tuple[int, ...], list[str]]:
    """Return the node slots to start with, and warnings. In a Slurm job, elasticity includes nodes lost before that."""
    lost = [slot for slot, host in enumerate(site.hosts) if host in hosts.failures] if site.transport == "srun" else []
    slots = slots_to_use(lost, launch, workers=site.placement(launch)[1], shards=shards)
    if len(slots) == launch.nodes:
        return slots, []
    reasons = "; ".join(f"{host}: {hosts.failures[host]}" for host in hosts.failures)
    return slots, [f"{len(slots)} of {launch.nodes} nodes are used (--elastic), as some do not answer: {reasons}"]


def _probe_costs(
    request: LaunchRequest, config: RunConfig, run: RunDir, site: Site, environment: Mapping[str, str]
) -> Costs:
    """Return the costs. Pretrained weights that a checkpoint or train.init_from replaces are not downloaded."""
    replaced = config.train.init_from is not None or any(run.checkpoints.glob("step-*"))
    if config.model.pretrained and replaced:
        request = replace(request, overrides=(*request.overrides, "model.pretrained=false"))
        config = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})})
    device: Device = "cuda" if site.placement(request.launch)[0] == "cuda" else "cpu"
    workers = site.count_workers(request.launch)
    wrap = request.launch.wrap
    return probe_costs(
        config, request.config_arguments, workers=workers, environment=environment, device=device, wrap=wrap
    )


def _probe_hosts(
    request: LaunchRequest, run: RunDir, environment: Mapping[str, str], cwd: str, config: RunConfig | None
) -> HostProbe:
    if request.stop_after == "plan" or (config is not None and is_finished(config, run)):
        return HostProbe()
    index = None if config is None else prepared_set_folder(config.data) / "index.json"
    variables = {**forwarded_variables_for(request.site, environment), **request.launch.extra_env}
    return probe_hosts(request.site, environment, run=run.path, cwd=cwd, index=index, variables=variables)


def load_request_config(request: LaunchRequest, changes: Sequence[str] = ()) -> RunConfig:
    """Load the requested config; `changes` are further overrides."""
    return load_config(request.config, [*request.overrides, *changes], data_root=request.data_root)


def resolve_run_dir(request: LaunchRequest, cwd: str, job: Allocation | None = None) -> RunDir:
    """Return the run directory; in a job array over seeds, the one of this task's seed."""
    folder = _requested_or_new_run_dir(request, cwd, job)
    seeds, task = request.launch.slurm.array, job.array_task if job is not None else None
    return seed_run_dir(folder, task) if seeds and task is not None else folder


def _requested_or_new_run_dir(request: LaunchRequest, cwd: str, job: Allocation | None) -> RunDir:
    """Return the requested run directory, or a new one. A batch job uses its own name, so that it resumes its run."""
    requested, parent = request.launch.run_dir, Path(cwd) / "runs"
    if requested is None and job is not None and job.is_batch:
        name = f"job{job.array_id}" if request.launch.slurm.array else job.run_name
        return RunDir((parent / f"{config_name(request.config)}-{name}").absolute())
    if requested is None:
        return RunDir.new(parent, config_name(request.config))
    try:
        return RunDir((Path(cwd) / validate_path(str(requested))).absolute())
    except ValueError as error:
        raise ConfigError([Problem(f"--run-dir {str(requested)!a}", f"expected {error}")]) from error


def prepare_command(config: RunConfig) -> tuple[str, ...]:
    """Return the command that prepares the data set; empty if it is prepared, or if its source is unknown."""
    if is_prepared(config) or config.data.name == FOLDER:
        return ()
    data = config.data
    options = {"--out": str(data.root), "--shards": str(data.shards), "--valid": str(data.valid)}
    flat = (part for option in options.items() for part in option)
    return (sys.executable, "-P", "-m", "fmfsd", "data", "prepare", data.name, *flat, "--download")


def show_plan(request: LaunchRequest, found: CheckedLaunch, plan: LaunchPlan) -> None:
    """Print the result of --check or --dry-run, and the warnings on stderr."""
    if request.stop_after == "check":
        text = found.costs.add_to_plan(plan.to_json()) if request.as_json else found.render(plan)
    else:
        text = plan.to_json() if request.as_json else plan.render()
    print(text.rstrip())
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
