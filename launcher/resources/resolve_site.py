"""Resolves the options that say where to run to a site: this machine, hosts reached by ssh, or a Slurm allocation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fmfsd.errors import ConfigError, Problem
from launcher.agent.available_resources import Resources
from launcher.config.launch_config import CPUS_PER_WORKER, LaunchConfig, SlurmOptions
from launcher.resources.allocation import Allocation
from launcher.resources.site import Site


def resolve_site(
    launch: LaunchConfig, *, nodes: int | None, environment: Mapping[str, str]
) -> tuple[Site, LaunchConfig]:
    """Return the site, with the wrapper of its agents, and the launch with its options resolved for this site."""
    site, settled = _resolve(launch, nodes, environment)
    options = tuple(f"--{key}={value}" if value else f"--{key}" for key, value in launch.slurm.srun)
    return replace(site, wrap=launch.wrap, srun_options=options), settled


def _resolve(launch: LaunchConfig, nodes: int | None, environment: Mapping[str, str]) -> tuple[Site, LaunchConfig]:
    """Return the site and the launch with the number of nodes requested or available.

    No host is contacted: hosts are assumed to have the requested resources. ConfigError for contradicting options.
    """
    allocation = Allocation.from_environment(environment)
    _require_consistent(launch, allocation)
    if launch.hosts:
        return _resolve_hosts(launch, nodes)
    if allocation is not None and launch.on != "local":
        return _resolve_allocation(allocation, launch, nodes)
    if launch.on == "slurm":
        launch = replace(launch, nodes=nodes or 1)
        return _batch_job_site(launch), launch
    return Site(Resources.detect(environment)), replace(launch, on="local", nodes=nodes or 1)


def _resolve_hosts(launch: LaunchConfig, nodes: int | None) -> tuple[Site, LaunchConfig]:
    hosts = launch.hosts[:nodes]
    slots = min((host.slots for host in hosts if host.slots), default=None)
    if launch.gpus and slots and launch.gpus > slots:
        message = f"{launch.gpus} requested, but the hostfile has a host with {slots} slots: set {slots} or less"
        raise ConfigError([Problem("--gpus", message)])
    launch = replace(launch, on="ssh", gpus=launch.gpus or slots, nodes=_num_nodes(nodes, launch.hosts))
    gpus = launch.gpus or (1 if launch.device == "cuda" else 0)  # assumed until the hosts are probed
    offered = Resources(cores=1, gpus=tuple(map(str, range(gpus if launch.device != "cpu" else 0))))
    return Site(offered, "ssh", tuple(host.name for host in hosts)), launch


def _resolve_allocation(allocation: Allocation, launch: LaunchConfig, nodes: int | None) -> tuple[Site, LaunchConfig]:
    names = allocation.list_hosts()
    if nodes is not None and launch.min_nodes is not None and launch.min_nodes <= len(names):
        nodes = min(nodes, len(names))
    offered = Resources(cores=allocation.cores, gpus=tuple(map(str, range(allocation.gpus_per_node()))))
    return Site(offered, "srun", names[:nodes]), replace(launch, on="slurm", nodes=_num_nodes(nodes, names))


def _num_nodes(nodes: int | None, available: Sequence[object]) -> int:
    """Return the requested number of nodes, or the number available."""
    if nodes is not None and nodes > len(available):
        raise ConfigError(
            [Problem("--nodes", f"{nodes} requested, {len(available)} available: {', '.join(map(str, available))}")]
        )
    return nodes or len(available)


def _require_consistent(launch: LaunchConfig, allocation: Allocation | None) -> None:
    names = ", ".join(host.name for host in launch.hosts)
    if launch.hosts and launch.on not in ("auto", "ssh"):
        raise ConfigError([Problem("--on, --hosts", f"{launch.on} contradicts the ssh hosts {names}: leave one out")])
    if launch.hosts and launch.on == "auto" and allocation is not None:
        raise ConfigError(
            [Problem("--hosts", f"given inside Slurm job {allocation.job_id}: add --on ssh, or leave the hosts out")]
        )
    if launch.on != "slurm" and allocation is None and launch.slurm != SlurmOptions():
        raise ConfigError([Problem("--on", "options of a batch job without --on slurm: add it, or leave them out")])
    if launch.on == "ssh" and not launch.hosts:
        raise ConfigError([Problem("--on ssh", "no hosts given: name them with --hosts or --hostfile")])


def _batch_job_site(launch: LaunchConfig) -> Site:
    """Return the site of a batch job with the resources to request from Slurm: GPUs unless the workers use the CPU."""
    workers = launch.gpus or 1
    gpus = tuple(map(str, range(workers))) if launch.device != "cpu" else ()
    cores = workers * (launch.slurm.cpus_per_gpu or CPUS_PER_WORKER)
    return Site(Resources(cores, gpus), "sbatch", tuple(f"{{node {number}}}" for number in range(launch.nodes)))
