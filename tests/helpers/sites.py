"""Sites whose hosts are this machine: real agents in the place of those that ssh or srun would reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.agent.resources import Resources
from launcher.resources.site import Site
from launcher.transport.agent_client import AGENT, Agent

DEADLINE_S = 60.0


@dataclass(frozen=True)
class NearSite(Site):
    """`ways`: by host the command that becomes or leads to its agent, where that is not simply one here."""

    ways: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def start_agent(self, host: str, environment: Mapping[str, str]) -> Agent:
        return Agent(self.ways.get(host, AGENT), deadline_s=DEADLINE_S)


def near_site(**ways: Sequence[str]) -> NearSite:
    """Of the hosts n1 and n2."""
    return NearSite(Resources(cores=1), "ssh", ("n1", "n2"), ways)


def hiding(folder: Path) -> tuple[str, ...]:
    """A way to an agent that sees another folder in the place of this one. Needs root."""
    return ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh", *AGENT)


def with_code_of(checkout: Path) -> tuple[str, ...]:
    """A way to an agent that imports another checkout."""
    return ("env", f"PYTHONPATH={checkout}", *AGENT)
