"""Opens the connections to agents on other machines: a few at a time, and again if a server refused one of too many."""

import random
import re
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.config.plain_text import harmless
from launcher.transport.agent_client import Link

AT_ONCE = 8
"""sshd accepts ten users that are logging in, and by default (MaxStartups 10:30:100) refuses some of further ones."""
LOGIN_S = 1.0
"""A connection that is older makes room for the next one."""
OPEN_S = 15.0
"""How long a refusal is waited for; ssh itself gives up earlier (ConnectTimeout)."""
TRIES = 5
RETRY_S = 0.5
"""Before the second try; each further one waits twice as long."""
_POLL_S = 0.05
_REFUSED = {
    r"(?:kex|ssh)_exchange_identification|Connection (?:reset|closed) by|Exceeded MaxStartups": (
        f"refused {TRIES} times: the sshd there, or on the way there, limits simultaneous connections: raise "
        "MaxStartups (and PerSourcePenalties) in its sshd_config"
    ),
    r"Socket timed out|Zero Bytes were transmitted|Unable to contact slurm controller|credential revoked": (
        f"refused {TRIES} times: Slurm's controller is overloaded or down: see `scontrol ping`, MessageTimeout and "
        "max_rpc_cnt in slurm.conf"
    ),
}
"""What ssh and srun print when a server did not serve them, and what a user can do if that stays so."""


def remedy(words: str) -> str:
    """Return the remedy for a connection that ended with `words` and was refused; empty for every other end."""
    return next((remedy for pattern, remedy in _REFUSED.items() if re.search(pattern, words)), "")


def open_all(
    starts: Sequence[Callable[[], Link]], agents: list[Link], *, stop: Callable[[], bool] = lambda: False
) -> list[Link | OSError]:
    """Start an agent by each of `starts`, and return them, or why one could not be started, in the same order.

    Returns once each has sent something, has ended, or has been silent for OPEN_S; or when `stop` becomes true. All of
    them are appended to `agents`, from which refused ones are removed.
    """
    openings, at_once = [_Opening(start, agents) for start in starts], AT_ONCE
    while not stop() and (pending := [each for each in openings if not each.is_settled]):
        waiting = [each for each in pending if each.is_due]
        room = at_once - sum(each.is_logging_in for each in pending)
        for each in waiting[: max(0, room)]:
            each.begin()
        if _poll(pending):
            at_once = max(1, at_once // 2)
    return [each.result or each.begin() for each in openings]


def _poll(pending: list["_Opening"]) -> bool:
    """Wait a moment for news of connections; whether one was refused."""
    poll, by_descriptor = select.poll(), {}
    for each in pending:
        if isinstance(each.result, Link):
            by_descriptor[each.result.fileno()] = each
            poll.register(each.result, select.POLLIN)
    events = poll.poll(_POLL_S * 1000)
    refused = [by_descriptor[number].note(has_ended=not event & select.POLLIN) for number, event in events]
    return any(refused)


@dataclass
class _Opening:
    """One connection. `result` is None before its start, and while it waits for its next try."""

    start: Callable[[], Link]
    agents: list[Link]
    result: Link | OSError | None = None
    is_heard: bool = False
    tries: int = 0
    at: float = 0.0
    """Of its start, or of the next try."""

    @property
    def is_settled(self) -> bool:
        return self.is_heard or (self.result is not None and time.monotonic() - self.at > OPEN_S)

    @property
    def is_due(self) -> bool:
        return self.result is None and time.monotonic() >= self.at

    @property
    def is_logging_in(self) -> bool:
        return self.result is not None and time.monotonic() - self.at < LOGIN_S

    def begin(self) -> Link | OSError:
        self.tries, self.at = self.tries + 1, time.monotonic()
        try:
            self.result = self.start()
            self.agents.append(self.result)
        except OSError as error:
            self.result, self.is_heard = error, True
        return self.result

    def note(self, *, has_ended: bool) -> bool:
        """It has sent something, or has ended without; whether it was refused and is to be tried again."""
        assert isinstance(self.result, Link)
        if not has_ended or self.tries == TRIES or not remedy(self.result.last_words()):
            self.is_heard = True
            return False
        self.agents.remove(self.result)
        self.result.close()
        self.result, self.at = None, time.monotonic() + RETRY_S * 2 ** (self.tries - 1) * random.uniform(0.5, 1.5)
        return True


def on_the_way(event: dict[str, Any]) -> str:
    """What ssh, srun or a shell on the way to an agent said before it was gone, in one line, and the remedy for it."""
    words = event.get("words", "")
    lines = [*(harmless(line).strip() for line in words.splitlines()), remedy(words)]
    return " / ".join(filter(None, lines))
