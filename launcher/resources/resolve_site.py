"""From what the command line says about where to run to a site: this machine, hosts, or an allocation of Slurm's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fmfsd.errors import ConfigError, Problem
from launcher.agent.resources import Resources
from launcher.config.launch_config import CPUS_PER_WORKER, LaunchConfig, SlurmOptions
from launcher.resources.allocation import Allocation
from launcher.resources.site import Site


def settle(launch: LaunchConfig, *, nodes: int | None, environment: Mapping[str, str]) -> tuple[Site, LaunchConfig]:
    """The site, and the launch on it, with the wrapper of its agents; see `_settle`."""
    site, settled = _settle(launch, nodes, environment)
    options = tuple(f"--{key}={value}" if value else f"--{key}" for key, value in launch.slurm.srun)
    return replace(site, wrap=launch.wrap, srun_options=options), settled


def _settle(launch: LaunchConfig, nodes: int | None, environment: Mapping[str, str]) -> tuple[Site, LaunchConfig]:
    """The site, and the launch on it, with as many nodes as were asked for or are there.

    Nobody is asked yet: hosts are supposed to have what is asked of them. ConfigError for what contradicts itself.
    """
    allocation = Allocation.of(environment)
    _require_one_meaning(launch, allocation)
    if launch.hosts:
        return _on_hosts(launch, nodes)
    if allocation is not None and launch.on != "local":
        return _in_allocation(allocation, launch, nodes)
    if launch.on == "slurm":
        launch = replace(launch, nodes=nodes or 1)
        return _of_a_job(launch), launch
    return Site(Resources.detect(environment)), replace(launch, on="local", nodes=nodes or 1)


def _on_hosts(launch: LaunchConfig, nodes: int | None) -> tuple[Site, LaunchConfig]:
    hosts = launch.hosts[:nodes]
    slots = min((host.slots for host in hosts if host.slots), default=None)
    if launch.gpus and slots and launch.gpus > slots:
        message = f"{launch.gpus} asked for, and the hostfile has a host with {slots} slots: ask for fewer"
        raise ConfigError([Problem("--gpus", message)])
    launch = replace(launch, on="ssh", gpus=launch.gpus or slots, nodes=_as_many(nodes, launch.hosts))
    gpus = launch.gpus or (1 if launch.device == "cuda" else 0)  # supposed, until the hosts are asked
    offered = Resources(cores=1, gpus=tuple(map(str, range(gpus if launch.device != "cpu" else 0))))
    return Site(offered, "ssh", tuple(host.name for host in hosts)), launch


def _in_allocation(allocation: Allocation, launch: LaunchConfig, nodes: int | None) -> tuple[Site, LaunchConfig]:
    names = allocation.hosts()
    if nodes is not None and launch.min_nodes is not None and launch.min_nodes <= len(names):
        nodes = min(nodes, len(names))
    offered = Resources(cores=allocation.cores, gpus=tuple(map(str, range(allocation.gpus_of_a_node()))))
    return Site(offered, "srun", names[:nodes]), replace(launch, on="slurm", nodes=_as_many(nodes, names))


def _as_many(nodes: int | None, there: Sequence[object]) -> int:
    """As were asked for, or all."""
    if nodes is not None and nodes > len(there):
        raise ConfigError([Problem("--nodes", f"{nodes} asked for, {len(there)} there: {', '.join(map(str, there))}")])
    return nodes or len(there)


def _require_one_meaning(launch: LaunchConfig, allocation: Allocation | None) -> None:
    names = ", ".join(host.name for host in launch.hosts)
    if launch.hosts and launch.on not in ("auto", "ssh"):
        raise ConfigError(
            [Problem("--on, --hosts", f"{launch.on}, and the hosts {names} to reach by ssh: leave one out")]
        )
    if launch.hosts and launch.on == "auto" and allocation is not None:
        raise ConfigError(
            [Problem("--hosts", f"in Slurm's job {allocation.job_id}: say --on ssh, or leave the hosts out")]
        )
    if launch.on != "slurm" and allocation is None and launch.slurm != SlurmOptions():
        raise ConfigError([Problem("--on", "options of a batch job without --on slurm: say it, or leave them out")])
    if launch.on == "ssh" and not launch.hosts:
        raise ConfigError([Problem("--on ssh", "which machines? Name them with --hosts or --hostfile")])


def _of_a_job(launch: LaunchConfig) -> Site:
    """What is to be asked of Slurm: GPUs, unless the workers are to do without."""
    workers = launch.gpus or 1
    gpus = tuple(map(str, range(workers))) if launch.device != "cpu" else ()
    cores = workers * (launch.slurm.cpus_per_gpu or CPUS_PER_WORKER)
    return Site(Resources(cores, gpus), "sbatch", tuple(f"{{node {number}}}" for number in range(launch.nodes)))
