"""Site: where the node agents of a launch run, how each is started, and what each node offers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from launcher.agent.available_resources import Resources
from launcher.config.launch_config import Device, LaunchConfig
from launcher.transport import srun, ssh
from launcher.transport.agent_client import AGENT_COMMAND, AgentProcess
from launcher.transport.wrap_command import with_python_fallback

AGENT_DEADLINE_S = 60.0
"""A coordinator and an agent on another machine give each other up after this time without a message."""


WRAPPED_HOST = "inside --wrap"
"""Name of this machine when it is probed from inside a wrapper."""


@dataclass(frozen=True)
class Site:
    """Where agents run. `transport`: how an agent is started: on this machine ("here"), or on one of `hosts` by ssh, by
    srun in the Slurm allocation, or by a Ray actor; "sbatch": a batch job is submitted, whose hosts are not known yet.

    `resources`: those of this machine, which its nodes share, or the minimum over the hosts. `wrap`: command in front
    of each agent. `srun_options`: further options of each agent's srun.
    """

    resources: Resources
    transport: Literal["here", "ssh", "srun", "sbatch", "ray"] = "here"
    hosts: tuple[str, ...] = ()
    wrap: tuple[str, ...] = field(default=(), kw_only=True)
    srun_options: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def is_wrapped(self) -> bool:
        """Return whether agents run inside a wrapper such as a container, with its own software."""
        return bool(self.wrap) or any(option.startswith("--container") for option in self.srun_options)

    @property
    def is_here(self) -> bool:
        return self.transport == "here"

    def host(self, slot: int) -> str:
        """Return the host of the launch's node `slot`; empty: this machine."""
        return "" if self.is_here else self.hosts[slot]

    def hosts_of(self, slots: Sequence[int]) -> tuple[str, ...]:
        """Return the hosts of these node slots; empty: all are on this machine."""
        return () if self.is_here else tuple(self.hosts[slot] for slot in slots)

    @property
    def hosts_to_probe(self) -> tuple[str, ...]:
        """Return the hosts that can be probed.

        Excluded are this machine without a wrapper, and nodes that Slurm has not allocated yet.
        """
        if self.is_here and self.is_wrapped:
            return (WRAPPED_HOST,)
        return self.hosts if self.transport in ("ssh", "srun") else ()

    def placement(self, launch: LaunchConfig) -> tuple[Device, int]:
        """Return the device and the number of workers per node."""
        gpus = len(self.resources.gpus)
        device: Device = launch.device if launch.device != "auto" else ("cuda" if gpus else "cpu")
        if launch.gpus is not None:
            return device, launch.gpus
        return device, max(1, gpus // (launch.nodes if self.is_here else 1)) if device == "cuda" else 1

    def count_workers(self, launch: LaunchConfig) -> int:
        """Return the number of workers on all nodes together."""
        return launch.nodes * self.placement(launch)[1]

    def memory_per_worker(self, launch: LaunchConfig, workers: int) -> int:
        """Return the bytes that each of `workers` workers has on its device; 0: unknown."""
        if self.placement(launch)[0] == "cuda":
            return self.resources.gpu_memory
        return self.resources.memory // (workers if self.is_here else math.ceil(workers / launch.nodes))

    def count_gpus(self, launch: LaunchConfig) -> int:
        """Return the number of GPUs on all nodes of the launch together."""
        return len(self.resources.gpus) * (1 if self.is_here else launch.nodes)

    def cores_per_node(self, nodes: int) -> int:
        return max(1, self.resources.cores // nodes) if self.is_here else self.resources.cores

    def agent_command(self, host: str, environment: Mapping[str, str]) -> tuple[str, ...]:
        """Return the command that becomes, or leads to, the agent on `host`; `environment` is the launcher's own."""
        agent = (*self.wrap, *with_python_fallback(AGENT_COMMAND)) if self.is_wrapped else AGENT_COMMAND
        if self.transport == "ssh":
            return ssh.agent_command(host, environment, deadline_s=AGENT_DEADLINE_S, agent=agent)
        if self.transport in ("srun", "sbatch"):
            cores, options = self.resources.cores, self.srun_options
            return srun.agent_command(host, cores=cores, deadline_s=AGENT_DEADLINE_S, agent=agent, options=options)
        return agent

    def start_agent(self, host: str, environment: Mapping[str, str]) -> AgentProcess:
        return start_agent_process(self.agent_command(host, environment), host)


def start_agent_process(command: tuple[str, ...], host: str) -> AgentProcess:
    """Start the agent of `host`; empty: of this machine."""
    return AgentProcess(command, deadline_s=AGENT_DEADLINE_S if host else None)
