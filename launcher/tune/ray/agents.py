"""A node's agent in a bundle of a Ray placement group: an actor there holds it, and Ray carries their words."""

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

from launcher.agent.resources import Resources
from launcher.plan.plan import NodePlan
from launcher.resources.site import AGENT_DEADLINE_S, Site
from launcher.supervise.coordinator import start_planned
from launcher.transport.agent_client import AGENT, END_S, Agent, Link

LOOK_S = 0.5
_GROUPS = {"tell": 1, "hear": 1}
"""A thread each, so that orders keep their order while another call waits for the agent's next words."""


@dataclass(frozen=True)
class Bundle:
    """Where a node of a trial is: Ray's id of the machine, its name, and what it offers there."""

    machine: str
    host: str
    resources: Resources

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> "Bundle":
        """The one that this actor is in."""
        machine = ray.get_runtime_context().get_node_id()
        return cls(machine, socket.gethostname(), Resources.detect(environment))


class Holder:
    """Lives in a bundle, as an actor. When it ends, however that happens, so do its agent and all that this started."""

    def look(self) -> Bundle:
        os.umask(0o077)
        return Bundle.here(os.environ)

    def start(self) -> None:
        """A new agent, which is told nothing of an earlier one."""
        self._agent = Agent((*AGENT, "--deadline", f"{AGENT_DEADLINE_S:g}"), deadline_s=AGENT_DEADLINE_S)

    def tell(self, order: Mapping[str, Any]) -> None:
        self._agent.tell(**order)

    def hear(self) -> bytes:
        """What the agent says next; nothing once it has ended."""
        return os.read(self._agent.fileno(), 1 << 16)

    def last_words(self) -> str:
        return self._agent.last_words()

    def hang_up(self) -> None:
        self._agent.hang_up()

    def close(self, within_s: float) -> None:
        self._agent.close(within_s=within_s)


class RayAgent(Link):
    """The agent of `holder`, an actor's handle. A thread puts what it says into a pipe, for whoever selects."""

    def __init__(self, holder: Any) -> None:
        super().__init__(AGENT_DEADLINE_S)
        self._holder, self._words = holder, ""
        self.is_lost = False
        """Whether the holder is gone."""
        self._closed = threading.Event()
        self._out, self._in = os.pipe()
        self._begun = self._ask("tell", "start")
        self._thread = threading.Thread(target=self._hear, name="words of a bundle's agent")
        self._thread.start()

    def fileno(self) -> int:
        return self._out

    def tell(self, **order: Any) -> None:
        self._ask("tell", "tell", order)

    def last_words(self) -> str:
        return f"{self.printed}\n{self._words}"

    def hang_up(self) -> None:
        self._ask("tell", "hang_up")

    def close(self, *, within_s: float = END_S) -> None:
        with suppress(RayError, GetTimeoutError):
            ray.get(self._ask("tell", "close", within_s), timeout=within_s + END_S)
        self._closed.set()
        os.close(self._out)
        self._thread.join()

    def _ask(self, group: str, method: str, *arguments: Any) -> Any:
        return getattr(self._holder, method).options(concurrency_group=group).remote(*arguments)

    def _hear(self) -> None:
        try:
            self._next(self._begun)
            while data := self._next(self._ask("hear", "hear")):
                os.write(self._in, data)
            self._words = self._next(self._ask("hear", "last_words")) or ""
        except RayError as error:
            self.is_lost, self._words = True, " ".join(str(error).split())
        except BrokenPipeError:  # nobody listens any more
            pass
        finally:
            os.close(self._in)

    def _next(self, answer: Any) -> Any:
        """None if nobody waits for it any more."""
        while not self._closed.is_set():
            if ray.wait([answer], timeout=LOOK_S)[0]:
                return ray.get(answer)
        return None


class Crew:
    """The nodes of the trial whose actor this is: one in each bundle of its placement group, the first one's here."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._group = get_current_placement_group()
        self._holders = {number: self._hold(number) for number in range(1, self._group.bundle_count)}
        self._agents = dict[int, RayAgent]()
        self._environment = environment

    def site(self, cores: int) -> Site:
        """With so many cores a node. Bundles on one machine share it; others meet over the network."""
        bundles = [Bundle.here(self._environment), *ray.get([each.look.remote() for each in self._holders.values()])]
        offered = [replace(each.resources, cores=cores, core_numbers=()) for each in bundles]
        if len({each.machine for each in bundles}) > 1:
            return Site(Resources.least(offered), "ray", tuple(each.host for each in bundles))
        gpus = tuple(name for each in offered for name in each.gpus)
        return Site(replace(offered[0], gpus=gpus, cores=cores * len(bundles)))

    def start_agent(self, node: NodePlan) -> Link:
        """Of a plan for this site, which has a node for each bundle."""
        if not node.host or node.node == 0:
            return start_planned(replace(node, host=""))
        if (before := self._agents.get(node.node)) and before.is_lost:
            self._holders[node.node] = self._hold(node.node)
        self._agents[node.node] = RayAgent(self._holders[node.node])
        return self._agents[node.node]

    def close(self) -> None:
        """Once no agent is left."""
        for holder in self._holders.values():
            ray.kill(holder)
        self._holders.clear()

    def _hold(self, number: int) -> Any:
        """The bundle's GPUs are the holder's, so that it sees them; of its cores it needs none itself."""
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
        gpus = self._group.bundle_specs[number].get("GPU", 0)
        actor = ray.remote(concurrency_groups=_GROUPS)(Holder)
        return actor.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=where).remote()
