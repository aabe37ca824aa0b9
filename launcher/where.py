"""From what the command line says about where to run to a site: this machine, hosts, or an allocation of Slurm's."""

from collections.abc import Mapping
from dataclasses import replace

from fmfsd.errors import ConfigError, Problem
from launcher.config import LaunchConfig, SlurmOptions
from launcher.resources import Resources
from launcher.site import Site
from launcher.slurm.allocation import Allocation
from launcher.slurm.batch import CPUS_PER_WORKER


def settle(launch: LaunchConfig, *, nodes: int | None, environment: Mapping[str, str]) -> tuple[Site, LaunchConfig]:
    """The site, and the launch on it, with as many nodes as were asked for or are there.

    Nobody is asked yet: hosts are supposed to have what is asked of them. ConfigError for what contradicts itself.
    """
    allocation = Allocation.of(environment)
    _require_one_meaning(launch, allocation)
    if launch.hosts:
        hosts = launch.hosts[: nodes or len(launch.hosts)]
        slots = min((host.slots for host in hosts if host.slots), default=None)
        if launch.gpus and slots and launch.gpus > slots:
            message = f"{launch.gpus} asked for, and the hostfile has a host with {slots} slots: ask for fewer"
            raise ConfigError([Problem("--gpus", message)])
        site = Site(Resources(cores=1), "ssh", tuple(host.name for host in hosts))
        launch = replace(launch, on="ssh", gpus=launch.gpus or slots)
    elif allocation is not None and launch.on != "local":
        offered = Resources(cores=allocation.cores, gpus=tuple(map(str, range(allocation.gpus))))
        site, launch = Site(offered, "srun", allocation.hosts()[:nodes]), replace(launch, on="slurm")
    elif launch.on == "slurm":
        launch = replace(launch, nodes=nodes or 1)
        return _of_a_job(launch), launch
    else:
        return Site(Resources.detect(environment)), replace(launch, on="local", nodes=nodes or 1)
    wanted = nodes or len(site.hosts)
    if wanted > len(site.hosts):
        raise ConfigError([Problem("--nodes", f"{wanted} asked for, {len(site.hosts)} there: {', '.join(site.hosts)}")])
    launch = replace(launch, nodes=wanted)
    return _supposed(site, launch), launch


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


def _supposed(site: Site, launch: LaunchConfig) -> Site:
    """That hosts have what is asked of them."""
    if site.reach == "srun" or launch.device == "cpu":
        return site
    gpus = launch.gpus or (1 if launch.device == "cuda" else 0)
    return replace(site, resources=replace(site.resources, gpus=tuple(map(str, range(gpus)))))
