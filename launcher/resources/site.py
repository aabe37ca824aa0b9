"""Where a launch's node agents run, how each is reached, and what each node offers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from launcher.agent.resources import Resources
from launcher.config.launch_config import Device, LaunchConfig
from launcher.transport import srun, ssh
from launcher.transport.agent_client import AGENT, Agent
from launcher.transport.wrap import python_inside

AGENT_DEADLINE_S = 60.0
"""A coordinator and an agent on another machine, of whom one has not heard from the other for so long, give up."""


WRAPPED = "inside --wrap"
"""What this machine is called as it is seen from inside a wrapper."""


@dataclass(frozen=True)
class Site:
    """`reach` says how an agent is started: here, or on one of `hosts` by ssh, by srun in Slurm's allocation, or by an
    actor of Ray's; or that a batch job is submitted, whose hosts are not known yet.

    `resources` are this machine's, which its nodes share, or what each of the hosts has at least. `wrap` comes before
    each agent's command, `srun_options` before it in a step of Slurm's.
    """

    resources: Resources
    reach: Literal["here", "ssh", "srun", "sbatch", "ray"] = "here"
    hosts: tuple[str, ...] = ()
    wrap: tuple[str, ...] = field(default=(), kw_only=True)
    srun_options: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def is_wrapped(self) -> bool:
        """Whether agents run inside something, such as a container, that has software of its own."""
        return bool(self.wrap) or any(option.startswith("--container") for option in self.srun_options)

    @property
    def is_here(self) -> bool:
        return self.reach == "here"

    def host(self, slot: int) -> str:
        """Of the launch's node `slot`; empty: this machine."""
        return "" if self.is_here else self.hosts[slot]

    def hosts_of(self, slots: Sequence[int]) -> tuple[str, ...]:
        """Return the hosts of these node slots; none: all are on this machine."""
        return () if self.is_here else tuple(self.hosts[slot] for slot in slots)

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """Those that can be asked: not this machine without a wrapper, and not nodes that Slurm has yet to choose."""
        if self.is_here and self.is_wrapped:
            return (WRAPPED,)
        return self.hosts if self.reach in ("ssh", "srun") else ()

    def placement(self, launch: LaunchConfig) -> tuple[Device, int]:
        """The device, and the workers on each node."""
        gpus = len(self.resources.gpus)
        device: Device = launch.device if launch.device != "auto" else ("cuda" if gpus else "cpu")
        if launch.gpus is not None:
            return device, launch.gpus
        return device, max(1, gpus // (launch.nodes if self.is_here else 1)) if device == "cuda" else 1

    def workers(self, launch: LaunchConfig) -> int:
        """On all nodes together."""
        return launch.nodes * self.placement(launch)[1]

    def memory_a_worker(self, launch: LaunchConfig, workers: int) -> int:
        """Bytes that each of so many has on its device; 0: unknown."""
        if self.placement(launch)[0] == "cuda":
            return self.resources.gpu_memory
        return self.resources.memory // (workers if self.is_here else math.ceil(workers / launch.nodes))

    def gpus_for(self, launch: LaunchConfig) -> int:
        """How many GPUs there are for the launch's nodes together."""
        return len(self.resources.gpus) * (1 if self.is_here else launch.nodes)

    def cores_a_node(self, nodes: int) -> int:
        return max(1, self.resources.cores // nodes) if self.is_here else self.resources.cores

    def agent(self, host: str, environment: Mapping[str, str]) -> tuple[str, ...]:
        """The command that becomes, or leads to, a node's agent; `environment` is the launcher's own."""
        agent = (*self.wrap, *python_inside(AGENT)) if self.is_wrapped else AGENT
        if self.reach == "ssh":
            return ssh.command(host, environment, deadline_s=AGENT_DEADLINE_S, agent=agent)
        if self.reach in ("srun", "sbatch"):
            cores, options = self.resources.cores, self.srun_options
            return srun.command(host, cores=cores, deadline_s=AGENT_DEADLINE_S, agent=agent, options=options)
        return agent

    def start_agent(self, host: str, environment: Mapping[str, str]) -> Agent:
        return start(self.agent(host, environment), host)


def start(command: tuple[str, ...], host: str) -> Agent:
    """The agent of `host`; empty: of this machine."""
    return Agent(command, deadline_s=AGENT_DEADLINE_S if host else None)
