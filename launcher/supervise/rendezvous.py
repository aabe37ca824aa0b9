"""How the nodes of an attempt come to meet: at a file, or at an address of the first node that all others reach."""

import selectors
import time
import uuid
from collections.abc import Mapping
from typing import Any

from launcher.plan.placeholders import (
    ADDRESS,
    ATTEMPT,
    INIT_METHOD,
    INTERFACE,
    NCCL_INTERFACE,
    PORT,
    RENDEZVOUS,
    RUN_ID,
    SCRATCH,
)
from launcher.plan.plan import LaunchPlan
from launcher.supervise.attempt import Attempt, NodeState
from launcher.supervise.stop_requests import Requests

READY_S = 60.0
"""For an agent on another machine to answer: until then ssh or srun may be under way."""
LOOK_S = 0.1
BEAT_EVERY_S = 1.0


class NotMetError(Exception):
    """A node has failed, is gone or silent, which its state says, or a stop was asked for."""


def meet(plan: LaunchPlan, attempt: Attempt, scratch: str, requests: Requests) -> list[Mapping[str, str]]:
    """What the plan's symbols stand for, a node each. Raises NotMetError.

    `scratch` is for agents of this machine, which share it; others make their own.
    """
    common = {ATTEMPT: str(attempt.number), RUN_ID: uuid.uuid4().hex}
    if plan.meets_at == "file here":
        return [{**common, **_at_a_file(scratch)} for _ in attempt.nodes]
    talk = _Talk(attempt, requests)
    if plan.meets_at == "file there":
        (node,) = talk.ask(
            attempt.nodes, "prepared", do="prepare", word="", interface=plan.interface, longest=plan.longest_scratch
        )
        return [{**common, **_at_a_file(node["scratch"])}]
    return [{**common, **symbols} for symbols in _at_an_address(talk, attempt.nodes, plan)]


def _at_a_file(scratch: str) -> dict[str, str]:
    return {RENDEZVOUS: f"{scratch}/rendezvous", INIT_METHOD: f"file://{scratch}/workers", SCRATCH: scratch}


def _at_an_address(talk: "_Talk", nodes: list[NodeState], plan: LaunchPlan) -> list[dict[str, str]]:
    first, others, word = nodes[0], nodes[1:], uuid.uuid4().hex
    interface, order = plan.interface, _preparing(plan)
    (prepared,) = talk.ask([first], "prepared", word=word, **order)
    scratches = [each["scratch"] for each in talk.ask(others, "prepared", word="", **order)]
    candidates, port = prepared["interfaces"], prepared["port"]
    reached = talk.ask(others, "reached", do="reach", word=word, addresses=list(candidates), port=port)
    for node, found in zip(others, reached, strict=True):
        if not found["interfaces"]:
            where = " or ".join(f"{address}:{port}" for address in candidates)
            node.note({"event": "failed", "message": f"it can't reach {first.host} at {where}: see --interface"})
            raise NotMetError
    address = _common(first, list(candidates), [each["interfaces"] for each in reached])
    interfaces = [candidates[address], *(interface or each["interfaces"][address] for each in reached)]
    return [
        {ADDRESS: address, PORT: str(port), INTERFACE: own, NCCL_INTERFACE: f"={own}", SCRATCH: scratch}
        for own, scratch in zip(interfaces, [prepared["scratch"], *scratches], strict=True)
    ]


def _preparing(plan: LaunchPlan) -> dict[str, Any]:
    return {"do": "prepare", "interface": plan.interface, "longest": plan.longest_scratch}


def _common(first: NodeState, candidates: list[str], reached: list[dict[str, str]]) -> str:
    """The likeliest address that all others reach."""
    for address in candidates:
        if all(address in each for each in reached):
            return address
    first.note({"event": "failed", "message": "no address of it is reached by all others: see --interface"})
    raise NotMetError


class _Talk:
    """Questions to agents, and their answers."""

    def __init__(self, attempt: Attempt, requests: Requests) -> None:
        self._nodes, self._run, self._requests = attempt.nodes, attempt.run, requests
        self._beat_at = 0.0

    def ask(self, nodes: list[NodeState], answer: str, **order: Any) -> list[dict[str, Any]]:
        """Each node's answer, which is an event of that name. NotMetError if one of all nodes has failed meanwhile."""
        for node in nodes:
            node.agent.tell(**order)
        answers, deadline = dict[int, dict[str, Any]](), time.monotonic() + READY_S
        with selectors.DefaultSelector() as selector:
            for node in self._nodes:
                selector.register(node.agent, selectors.EVENT_READ, node)
            while len(answers) < len(nodes):
                for key, _ in selector.select(LOOK_S):
                    self._hear(key.data, answer, answers)
                self._beat()
                self._give_up([node for node in nodes if id(node) not in answers], late=time.monotonic() > deadline)
        return [answers[id(node)] for node in nodes]

    def _hear(self, node: NodeState, answer: str, answers: dict[int, dict[str, Any]]) -> None:
        for event in node.agent.read():
            node.note(event)
            if event["event"] == "asked-to-stop":
                self._requests.ask()
            if event["event"] == answer:
                answers[id(node)] = event

    def _beat(self) -> None:
        """To agents that wait for others, and to whoever has asked for a stop."""
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + BEAT_EVERY_S
            self._requests.look_at(self._run.stop_request)
            for node in self._nodes:
                node.agent.beat()

    def _give_up(self, missing: list[NodeState], *, late: bool) -> None:
        for node in missing if late else ():
            node.note({"event": "silent", "words": node.agent.printed})
        if self._requests.stop or any(node.done for node in self._nodes):
            raise NotMetError
