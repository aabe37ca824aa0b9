"""Opens connections to agents on other machines: a limited number at a time, with retries after refusals."""

import random
import re
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.config.plain_text import sanitize_line
from launcher.transport.agent_client import AgentConnection

MAX_CONCURRENT_LOGINS = 8
"""sshd accepts ten simultaneous logins, and by default (MaxStartups 10:30:100) refuses some of the others."""
LOGIN_S = 1.0
"""A connection that is older no longer counts as a login."""
OPEN_TIMEOUT_S = 15.0
"""Time in which a connection may be refused; ssh itself gives up earlier (ConnectTimeout)."""
MAX_TRIES = 5
RETRY_DELAY_S = 0.5
"""Delay before the second try; it doubles with each further try."""
_POLL_S = 0.05
_REFUSALS = {
    r"(?:kex|ssh)_exchange_identification|Connection (?:reset|closed) by|Exceeded MaxStartups": (
        f"refused {MAX_TRIES} times: the sshd there, or on the way there, limits simultaneous connections: raise "
        "MaxStartups (and PerSourcePenalties) in its sshd_config"
    ),
    r"Socket timed out|Zero Bytes were transmitted|Unable to contact slurm controller|credential revoked": (
        f"refused {MAX_TRIES} times: Slurm's controller is overloaded or down: see `scontrol ping`, MessageTimeout and "
        "max_rpc_cnt in slurm.conf"
    ),
}
"""Error output of ssh and srun when a server refused a connection, and the remedy if it keeps refusing."""


def find_remedy(output: str) -> str:
    """Return the remedy for a refused connection by its error output; empty if the connection was not refused."""
    return next((remedy for pattern, remedy in _REFUSALS.items() if re.search(pattern, output)), "")


def open_connections(
    starts: Sequence[Callable[[], AgentConnection]],
    agents: list[AgentConnection],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> list[AgentConnection | OSError]:
    """Start an agent by each of `starts` and return them in the same order, or the OSError of a failed start.

    Returns once each agent has sent something, has ended, or has been silent for OPEN_TIMEOUT_S, or when `stop` returns
    true. All agents are appended to `agents`; refused ones are removed again.
    """
    openings, max_logins = [_Opening(start, agents) for start in starts], MAX_CONCURRENT_LOGINS
    while not stop() and (pending := [opening for opening in openings if not opening.is_settled]):
        waiting = [opening for opening in pending if opening.is_due]
        free_slots = max_logins - sum(opening.is_logging_in for opening in pending)
        for opening in waiting[: max(0, free_slots)]:
            opening.connect()
        if _poll(pending):
            max_logins = max(1, max_logins // 2)
    return [opening.result or opening.connect() for opening in openings]


def _poll(pending: list["_Opening"]) -> bool:
    """Wait a moment for events of connections. Return whether one was refused."""
    poll, by_descriptor = select.poll(), {}
    for opening in pending:
        if isinstance(opening.result, AgentConnection):
            by_descriptor[opening.result.fileno()] = opening
            poll.register(opening.result, select.POLLIN)
    events = poll.poll(_POLL_S * 1000)
    refused = [by_descriptor[number].handle_event(has_ended=not event & select.POLLIN) for number, event in events]
    return any(refused)


@dataclass
class _Opening:
    """One connection that is being opened. `result` is None before the start and while waiting for the next try."""

    start: Callable[[], AgentConnection]
    agents: list[AgentConnection]
    result: AgentConnection | OSError | None = None
    has_responded: bool = False
    tries: int = 0
    at: float = 0.0
    """Time of the start, or of the next try."""

    @property
    def is_settled(self) -> bool:
        return self.has_responded or (self.result is not None and time.monotonic() - self.at > OPEN_TIMEOUT_S)

    @property
    def is_due(self) -> bool:
        return self.result is None and time.monotonic() >= self.at

    @property
    def is_logging_in(self) -> bool:
        return self.result is not None and time.monotonic() - self.at < LOGIN_S

    def connect(self) -> AgentConnection | OSError:
        self.tries, self.at = self.tries + 1, time.monotonic()
        try:
            self.result = self.start()
            self.agents.append(self.result)
        except OSError as error:
            self.result, self.has_responded = error, True
        return self.result

    def handle_event(self, *, has_ended: bool) -> bool:
        """Record that the agent has sent something or has ended. Return whether it was refused and is retried."""
        assert isinstance(self.result, AgentConnection)
        if not has_ended or self.tries == MAX_TRIES or not find_remedy(self.result.read_error_output()):
            self.has_responded = True
            return False
        self.agents.remove(self.result)
        self.result.close()
        self.result, self.at = None, time.monotonic() + RETRY_DELAY_S * 2 ** (self.tries - 1) * random.uniform(0.5, 1.5)
        return True


def describe_lost_connection(event: dict[str, Any]) -> str:
    """Return in one line what ssh, srun or a shell printed before the agent was lost, and the remedy."""
    output = event.get("words", "")
    lines = [*(sanitize_line(line).strip() for line in output.splitlines()), find_remedy(output)]
    return " / ".join(filter(None, lines))
