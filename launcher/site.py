"""Where a launch's node agents run, how each is reached, and what each node offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from launcher.config import LaunchConfig
from launcher.hosts import srun, ssh
from launcher.hosts.agents import Agent
from launcher.resources import Resources

AGENT_DEADLINE_S = 60.0
"""A coordinator and an agent on another machine, of whom one has not heard from the other for so long, give up."""


@dataclass(frozen=True)
class Site:
    """`reach` says how an agent is started: here, or on one of `hosts` by ssh or, in an allocation of Slurm's, by srun;
    or that a batch job is submitted, whose hosts are not known yet.

    `resources` are this machine's, which its nodes share, or what each of the hosts has at least.
    """

    resources: Resources
    reach: Literal["here", "ssh", "srun", "sbatch"] = "here"
    hosts: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        return self.reach == "here"

    def placement(self, launch: LaunchConfig) -> tuple[str, int]:
        """The device, and the workers on each node."""
        gpus = len(self.resources.gpus)
        device = launch.device if launch.device != "auto" else ("cuda" if gpus else "cpu")
        if launch.gpus is not None:
            return device, launch.gpus
        return device, max(1, gpus // (launch.nodes if self.is_here else 1)) if device == "cuda" else 1

    def gpus_for(self, launch: LaunchConfig) -> int:
        """How many GPUs there are for the launch's nodes together."""
        return len(self.resources.gpus) * (1 if self.is_here else launch.nodes)

    def cores_a_node(self, nodes: int) -> int:
        return max(1, self.resources.cores // nodes) if self.is_here else self.resources.cores

    def start_agent(self, host: str, environment: Mapping[str, str]) -> Agent:
        """`environment` is the launcher's own: what ssh and srun need of it is theirs."""
        if self.reach == "ssh":
            command = ssh.command(host, environment, deadline_s=AGENT_DEADLINE_S)
        elif self.reach == "srun":
            command = srun.command(host, cores=self.resources.cores, deadline_s=AGENT_DEADLINE_S)
            return Agent(command, deadline_s=AGENT_DEADLINE_S, env=srun.environment(environment))
        else:
            return Agent()
        return Agent(command, deadline_s=AGENT_DEADLINE_S)
