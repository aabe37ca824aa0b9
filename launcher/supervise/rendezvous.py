"""Rendezvous of an attempt's nodes: by a file, or at an address of the first node that all others can reach."""

import selectors
import time
import uuid
from collections.abc import Mapping
from typing import Any

from launcher.plan.launch_plan import LaunchPlan
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
from launcher.supervise.attempt import Attempt, NodeState
from launcher.supervise.stop_requests import StopRequests

ANSWER_TIMEOUT_S = 60.0
"""Time limit for an agent's answer, including the time of ssh or srun to start it."""
POLL_S = 0.1
HEARTBEAT_EVERY_S = 1.0


class RendezvousError(Exception):
    """A node has failed or was lost, as its state says, or a stop was requested."""


def run_rendezvous(plan: LaunchPlan, attempt: Attempt, scratch: str, requests: StopRequests) -> list[Mapping[str, str]]:
    """Return the values of the plan's placeholders, one mapping per node. Raises RendezvousError.

    `scratch`: the scratch folder that agents on this machine share; agents elsewhere make their own.
    """
    common = {ATTEMPT: str(attempt.number), RUN_ID: uuid.uuid4().hex}
    if plan.rendezvous_place == "file here":
        return [{**common, **_file_values(scratch)} for _ in attempt.nodes]
    queries = _Queries(attempt, requests)
    if plan.rendezvous_place == "file there":
        (node,) = queries.send(
            attempt.nodes, "prepared", do="prepare", word="", interface=plan.interface, longest=plan.max_scratch_length
        )
        return [{**common, **_file_values(node["scratch"])}]
    return [{**common, **values} for values in _address_values(queries, attempt.nodes, plan)]


def _file_values(scratch: str) -> dict[str, str]:
    return {RENDEZVOUS: f"{scratch}/rendezvous", INIT_METHOD: f"file://{scratch}/workers", SCRATCH: scratch}


def _address_values(queries: "_Queries", nodes: list[NodeState], plan: LaunchPlan) -> list[dict[str, str]]:
    first, others, token = nodes[0], nodes[1:], uuid.uuid4().hex
    interface, command = plan.interface, _prepare_command(plan)
    (prepared,) = queries.send([first], "prepared", word=token, **command)
    scratches = [each["scratch"] for each in queries.send(others, "prepared", word="", **command)]
    candidates, port = prepared["interfaces"], prepared["port"]
    reached = queries.send(others, "reached", do="reach", word=token, addresses=list(candidates), port=port)
    for node, answer in zip(others, reached, strict=True):
        if not answer["interfaces"]:
            where = " or ".join(f"{address}:{port}" for address in candidates)
            node.apply_event({"event": "failed", "message": f"it can't reach {first.host} at {where}: see --interface"})
            raise RendezvousError
    address = _common_address(first, list(candidates), [each["interfaces"] for each in reached])
    interfaces = [candidates[address], *(interface or each["interfaces"][address] for each in reached)]
    return [
        {ADDRESS: address, PORT: str(port), INTERFACE: own, NCCL_INTERFACE: f"={own}", SCRATCH: scratch}
        for own, scratch in zip(interfaces, [prepared["scratch"], *scratches], strict=True)
    ]


def _prepare_command(plan: LaunchPlan) -> dict[str, Any]:
    return {"do": "prepare", "interface": plan.interface, "longest": plan.max_scratch_length}


def _common_address(first: NodeState, candidates: list[str], reached: list[dict[str, str]]) -> str:
    """Return the first of `candidates` that all other nodes reach; the agent lists the most likely first."""
    for address in candidates:
        if all(address in each for each in reached):
            return address
    first.apply_event(
        {"event": "failed", "message": "none of its addresses can be reached by all other nodes: see --interface"}
    )
    raise RendezvousError


class _Queries:
    """Queries to agents, and their answers."""

    def __init__(self, attempt: Attempt, requests: StopRequests) -> None:
        self._nodes, self._run, self._requests = attempt.nodes, attempt.run, requests
        self._heartbeat_at = 0.0

    def send(self, nodes: list[NodeState], answer: str, **command: Any) -> list[dict[str, Any]]:
        """Send `command` to `nodes` and return each one's event named `answer`.

        Raises RendezvousError if any node of the attempt fails before that.
        """
        for node in nodes:
            node.agent.send(**command)
        answers, deadline = dict[int, dict[str, Any]](), time.monotonic() + ANSWER_TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            for node in self._nodes:
                selector.register(node.agent, selectors.EVENT_READ, node)
            while len(answers) < len(nodes):
                for key, _ in selector.select(POLL_S):
                    self._read_events(key.data, answer, answers)
                self._send_heartbeats()
                self._raise_on_failure(
                    [node for node in nodes if id(node) not in answers], late=time.monotonic() > deadline
                )
        return [answers[id(node)] for node in nodes]

    def _read_events(self, node: NodeState, answer: str, answers: dict[int, dict[str, Any]]) -> None:
        for event in node.agent.read():
            node.apply_event(event)
            if event["event"] == "asked-to-stop":
                self._requests.request_stop()
            if event["event"] == answer:
                answers[id(node)] = event

    def _send_heartbeats(self) -> None:
        """Send heartbeats to all agents, also those that wait for others, and check for a stop request."""
        if time.monotonic() >= self._heartbeat_at:
            self._heartbeat_at = time.monotonic() + HEARTBEAT_EVERY_S
            self._requests.check_files(self._run.stop_request)
            for node in self._nodes:
                node.agent.send_heartbeat()

    def _raise_on_failure(self, missing: list[NodeState], *, late: bool) -> None:
        """Raise RendezvousError on a stop request or if a node has failed; `missing` nodes that are `late` have."""
        for node in missing if late else ():
            node.apply_event({"event": "silent", "words": node.agent.startup_output})
        if self._requests.is_stop_requested or any(node.done for node in self._nodes):
            raise RendezvousError
