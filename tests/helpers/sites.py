"""Sites whose hosts are this machine: real local agents instead of agents reached by ssh or srun."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.agent.available_resources import Resources
from launcher.resources.site import Site
from launcher.transport.agent_client import AGENT_COMMAND, AgentProcess

DEADLINE_S = 60.0


@dataclass(frozen=True)
class LocalhostSite(Site):
    """A site of local agents; `ways` maps a host to the command that starts its agent (default: AGENT)."""

    agent_commands: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def start_agent(self, host: str, environment: Mapping[str, str]) -> AgentProcess:
        return AgentProcess(self.agent_commands.get(host, AGENT_COMMAND), deadline_s=DEADLINE_S)


def localhost_site(**ways: Sequence[str]) -> LocalhostSite:
    """Return a site of the hosts n1 and n2, with the agent commands `ways` by host."""
    return LocalhostSite(Resources(cores=1), "ssh", ("n1", "n2"), ways)


def agent_hiding_folder(folder: Path) -> tuple[str, ...]:
    """Return the command of an agent that sees an empty file system at `folder`. Needs root."""
    return ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh", *AGENT_COMMAND)


def agent_with_checkout(checkout: Path) -> tuple[str, ...]:
    """Return the command of an agent that imports the code of `checkout`."""
    return ("env", f"PYTHONPATH={checkout}", *AGENT_COMMAND)
