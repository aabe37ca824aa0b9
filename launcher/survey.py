"""What each host of a site offers and sees, asked of an agent there: all hosts at once."""

import selectors
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from launcher.attempt import on_the_way
from launcher.hosts.agents import Agent

ANSWER_S = 30.0
LOOK_S = 0.1


def survey(
    hosts: Sequence[str], start_agent: Callable[[str], Agent], **question: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By host: what those said that answered `question` (`launcher.look`), and why others did not."""
    seen, trouble, deadline = dict[str, dict[str, Any]](), dict[str, str](), time.monotonic() + ANSWER_S
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for host in hosts:
            agent = start_agent(host)
            stack.callback(agent.close)
            agent.tell(do="look", **question)
            selector.register(agent, selectors.EVENT_READ, host)
        while len(seen) + len(trouble) < len(hosts) and time.monotonic() < deadline:
            for key, _ in selector.select(LOOK_S):
                _note(key.fileobj, key.data, seen, trouble)
                if key.data in seen or key.data in trouble:
                    selector.unregister(key.fileobj)
    silent = {host: f"no answer in {ANSWER_S:g} s" for host in hosts if host not in seen and host not in trouble}
    return seen, {**trouble, **silent}


def _note(agent: Any, host: str, seen: dict[str, dict[str, Any]], trouble: dict[str, str]) -> None:
    for event in agent.read():
        if event["event"] == "seen":
            seen[host] = event
        elif event["event"] == "failed":
            trouble[host] = event["message"]
        elif event["event"] == "gone" and host not in seen:
            trouble[host] = f"no agent could be started there: {on_the_way(event)}"
