"""Node agents in the bundles of a Ray placement group: an actor per bundle runs the agent and relays its messages."""

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launcher.agent.available_resources import Resources
from launcher.plan.launch_plan import NodePlan
from launcher.resources.site import AGENT_DEADLINE_S, Site
from launcher.supervise.coordinator import start_node_agent
from launcher.transport.agent_client import AGENT_COMMAND, END_TIMEOUT_S, AgentConnection, AgentProcess

POLL_S = 0.5
_GROUPS = {"commands": 1, "events": 1}
"""Concurrency groups with one thread each: commands stay in order while a call waits for the next event."""


@dataclass(frozen=True)
class Bundle:
    """The place of a trial's node: Ray's node id of the machine, its host name and the bundle's resources."""

    node_id: str
    host: str
    resources: Resources

    @classmethod
    def current(cls, environment: Mapping[str, str]) -> "Bundle":
        """Return the bundle of this actor."""
        machine = ray.get_runtime_context().get_node_id()
        return cls(machine, socket.gethostname(), Resources.detect(environment))


class AgentActor:
    """The actor in a bundle. When it ends, for any reason, its agent and all processes of the agent end too."""

    def bundle(self) -> Bundle:
        """Return the bundle of this actor."""
        os.umask(0o077)
        return Bundle.current(os.environ)

    def start(self) -> None:
        """Start a new agent."""
        self._agent = AgentProcess((*AGENT_COMMAND, "--deadline", f"{AGENT_DEADLINE_S:g}"), deadline_s=AGENT_DEADLINE_S)

    def send(self, command: Mapping[str, Any]) -> None:
        """Send a command to the agent."""
        self._agent.send(**command)

    def receive(self) -> bytes:
        """Wait for output of the agent; return nothing once it has ended."""
        return os.read(self._agent.fileno(), 1 << 16)

    def read_error_output(self) -> str:
        """Return the end of the agent's error output."""
        return self._agent.read_error_output()

    def close_input(self) -> None:
        """Close the agent's input, so that it ends its processes and itself."""
        self._agent.close_input()

    def close(self, timeout_s: float) -> None:
        """Wait until the agent has ended, and kill it after `timeout_s` seconds."""
        self._agent.close(timeout_s=timeout_s)


class RayAgent(AgentConnection):
    """The connection to the agent of `actor`, an actor handle. A thread writes the agent's output into a pipe."""

    def __init__(self, actor: Any) -> None:
        super().__init__(AGENT_DEADLINE_S)
        self._actor, self._error_output = actor, ""
        self.is_lost = False
        """True once the actor has ended."""
        self._closed = threading.Event()
        self._out, self._in = os.pipe()
        self._start_call = self._call("commands", "start")
        self._thread = threading.Thread(target=self._relay, name="events of a bundle's agent")
        self._thread.start()

    def fileno(self) -> int:
        return self._out

    def send(self, **order: Any) -> None:
        self._call("commands", "send", order)

    def read_error_output(self) -> str:
        return f"{self.startup_output}\n{self._error_output}"

    def close_input(self) -> None:
        self._call("commands", "close_input")

    def close(self, *, timeout_s: float = END_TIMEOUT_S) -> None:
        with suppress(RayError, GetTimeoutError):
            ray.get(self._call("commands", "close", timeout_s), timeout=timeout_s + END_TIMEOUT_S)
        self._closed.set()
        os.close(self._out)
        self._thread.join()

    def _call(self, group: str, method: str, *arguments: Any) -> Any:
        return getattr(self._actor, method).options(concurrency_group=group).remote(*arguments)

    def _relay(self) -> None:
        try:
            self._result(self._start_call)
            while data := self._result(self._call("events", "receive")):
                os.write(self._in, data)
            self._error_output = self._result(self._call("events", "read_error_output")) or ""
        except RayError as error:
            self.is_lost, self._error_output = True, " ".join(str(error).split())
        except BrokenPipeError:  # the connection is closed
            pass
        finally:
            os.close(self._in)

    def _result(self, call: Any) -> Any:
        """Wait for the result of a remote call; return None if the connection is closed before that."""
        while not self._closed.is_set():
            if ray.wait([call], timeout=POLL_S)[0]:
                return ray.get(call)
        return None


class PlacementGroupNodes:
    """The nodes of this actor's trial, one per bundle of its placement group; the first bundle is this actor's."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._group = get_current_placement_group()
        self._actors = {number: self._start_actor(number) for number in range(1, self._group.bundle_count)}
        self._agents = dict[int, RayAgent]()
        self._environment = environment

    def site(self, cores: int) -> Site:
        """Return the site with `cores` cores per node: one machine if all bundles are on it, else several hosts."""
        bundles = [
            Bundle.current(self._environment),
            *ray.get([each.bundle.remote() for each in self._actors.values()]),
        ]
        resources = [replace(each.resources, cores=cores, core_numbers=()) for each in bundles]
        if len({each.node_id for each in bundles}) > 1:
            return Site(Resources.minimum(resources), "ray", tuple(each.host for each in bundles))
        gpus = tuple(name for each in resources for name in each.gpus)
        return Site(replace(resources[0], gpus=gpus, cores=cores * len(bundles)))

    def start_agent(self, node: NodePlan) -> AgentConnection:
        """Start the agent of a node; a plan for this site has a node for each bundle."""
        if not node.host or node.node == 0:
            return start_node_agent(replace(node, host=""))
        if (previous := self._agents.get(node.node)) and previous.is_lost:
            self._actors[node.node] = self._start_actor(node.node)
        self._agents[node.node] = RayAgent(self._actors[node.node])
        return self._agents[node.node]

    def close(self) -> None:
        """Kill the actors. All agents must be closed."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _start_actor(self, number: int) -> Any:
        """Start the actor of a bundle, with all GPUs of the bundle, so that they are visible to it, and no cores."""
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
        gpus = self._group.bundle_specs[number].get("GPU", 0)
        actor = ray.remote(concurrency_groups=_GROUPS)(AgentActor)
        return actor.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=strategy).remote()
