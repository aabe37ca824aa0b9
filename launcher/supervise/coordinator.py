"""The coordinator: carries out a plan with one agent a node, from the first process to the outcome."""

import math
import selectors
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.agent.network import scratch_folder
from launcher.plan.placeholders import SCRATCH
from launcher.plan.plan import LaunchPlan, NodePlan
from launcher.resources.site import start
from launcher.supervise.attempt import Attempt, NodeState
from launcher.supervise.hang_detector import Pulses
from launcher.supervise.rendezvous import NotMetError, meet
from launcher.supervise.stop_requests import Requests
from launcher.transport.agent_client import Agent, Link, closing_all
from launcher.transport.connect import open_all

LOOK_S = 0.1
TERM_TO_KILL_S = 5.0
"""From telling a starter to end until its node's processes are killed."""
KILL_TO_LEAVE_S = 10.0
"""From telling an agent to kill them until the agent itself is given up, and killed."""
LAST_WORD_S = 30.0
"""From the run's own word of its end until whoever is still there is told to end."""
DUMP_S = 0.5
"""For hanging workers to write down where they are."""
REQUEST_EVERY_S = 0.5
"""How often the coordinator looks for a stop request."""
BEAT_EVERY_S = 5.0
"""How often agents on other machines hear from the coordinator and are to answer."""


def start_planned(node: NodePlan) -> Agent:
    """The agent that the plan says."""
    return start(node.agent, node.host)


def run_plan(
    plan: LaunchPlan,
    run: RunDir,
    *,
    grace_s: float,
    hang_timeout_s: float = math.inf,
    requests: Requests,
    watch: Callable[[], None],
    start_agent: Callable[[NodePlan], Link] = start_planned,
) -> Attempt:
    """Start, watch and end one attempt. Its state is finished, stopped, failed or interrupted; nothing is left running.

    `watch` is called ten times a second. `requests` are filled by the signal handlers that the caller has set. Raises
    RunFailedError if the attempt can't be written down, which keeps workers of earlier ones away from the run.
    """
    with ExitStack() as stack:
        scratch = scratch_folder(plan.longest_scratch, plan.scratch_parent) if plan.meets_at == "file here" else ""
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        agents = _opened(plan, run, requests, start_agent, stack.enter_context(closing_all()))
        attempt = Attempt(
            run,
            run.last_attempt() + 1,
            [
                NodeState(agent, starts_workers=bool(node.workers))
                for node, agent in zip(plan.nodes, agents, strict=True)
            ],
            plan.num_workers,
        )
        attempt.begin()
        pulses = Pulses(run, attempt.number, plan.num_workers, hang_timeout_s=hang_timeout_s)
        with suppress(NotMetError):
            _start(plan, attempt, scratch, requests)
            _Watch(attempt, requests, pulses, grace_s).until_done(watch)
    if requests.asked_at is not None:
        attempt.stopped_after_s = round(time.monotonic() - requests.asked_at, 3)
    attempt.state = _state(run, attempt.number)
    if attempt.state == "failed" and requests.interrupted:
        attempt.state = "interrupted"
    elif attempt.state == "failed" and requests.stop and not pulses.has_begun():
        attempt.say_stopped()  # signals that everybody gets have ended some that were not ready for them
    attempt.write()
    return attempt


def _opened(
    plan: LaunchPlan,
    run: RunDir,
    requests: Requests,
    start_agent: Callable[[NodePlan], Link],
    agents: list[Link],
) -> list[Link]:
    """The agent of each node, appended to `agents` too. OSError if one can't be started."""
    starts = [partial(start_agent, node) for node in plan.nodes]
    if plan.is_here:
        for start in starts:
            agents.append(start())
        return list(agents)

    def stop() -> bool:
        requests.look_at(run.stop_request)
        return requests.stop

    opened = open_all(starts, agents, stop=stop)
    for each in opened:
        if isinstance(each, OSError):
            raise each
    return [each for each in opened if isinstance(each, Link)]


def _start(plan: LaunchPlan, attempt: Attempt, scratch: str, requests: Requests) -> None:
    met = meet(plan, attempt, scratch, requests)
    for node, state, symbols in zip(plan.nodes, attempt.nodes, met, strict=True):
        ready, log = node.filled(symbols), str(attempt.run.starter_log(node.node))
        what = {"argv": ready.argv, "env": dict(ready.env), "cwd": ready.cwd, "workers": ready.workers}
        what |= {"inherits": ready.inherits}
        state.agent.tell(do="start", **what, log=log, scratch=symbols[SCRATCH])


def _state(run: RunDir, attempt: int) -> str:
    """The run's own word, if it has spoken; a starter's exit code says little."""
    try:
        outcome = read_json(run.outcome)
        return str(outcome["state"]) if outcome["attempt"] == attempt else "failed"
    except (OSError, ValueError, KeyError):
        return "failed"


class _Watch:
    """Waits for all nodes, and ends them: when asked to, or when one of them has failed."""

    def __init__(self, attempt: Attempt, requests: Requests, pulses: Pulses, grace_s: float) -> None:
        self._attempt, self._requests, self._pulses, self._grace_s = attempt, requests, pulses, grace_s
        self._end_at, self._look_at, self._beat_at = math.inf, 0.0, 0.0
        self._told = ""

    def until_done(self, watch: Callable[[], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for node in self._attempt.nodes:
                selector.register(node.agent, selectors.EVENT_READ, node)
            while not all(node.done for node in self._attempt.nodes):
                for key, _ in selector.select(LOOK_S):
                    self._hear(key.data, selector)
                self._beat()
                self._look()
                self._decide()
                watch()

    def _hear(self, node: NodeState, selector: selectors.BaseSelector) -> None:
        for event in node.agent.read():
            node.note(event)
            if event["event"] == "asked-to-stop":
                self._requests.ask()
            if event["event"] == "worker-gone" and self._attempt.dead_rank is None:
                self._attempt.dead_rank = self._pulses.rank_of(event["pid"], self._attempt.ranks_on(node))
            if event["event"] == "started":
                self._attempt.write()
            if event["event"] == "gone":
                selector.unregister(node.agent)

    def _beat(self) -> None:
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + BEAT_EVERY_S
            for node in self._attempt.nodes:
                node.agent.beat()
                if node.agent.is_silent:
                    node.note({"event": "silent", "words": node.agent.printed})

    def _look(self) -> None:
        """At what nobody tells: a request to stop in the run's folder, and workers that hang."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + REQUEST_EVERY_S
            self._requests.look_at(self._attempt.run.stop_request)
            if self._end_at == math.inf and _state(self._attempt.run, self._attempt.number) != "failed":
                self._end_at = now + LAST_WORD_S
        if not self._attempt.notice_failure() and (hang := self._pulses.look()):
            self._attempt.hang, self._attempt.trouble = hang, hang.text
            self._end_at = now - TERM_TO_KILL_S + DUMP_S
            for node in self._attempt.nodes:
                node.agent.tell(do="dump", pids=list(hang.pids.values()))

    def _decide(self) -> None:
        """When all must have ended, and how far beyond that it is now."""
        now = time.monotonic()
        if self._requests.interrupted:
            self._end_at = min(self._end_at, now - TERM_TO_KILL_S)
        elif self._attempt.notice_failure():
            self._end_at = min(self._end_at, now + TERM_TO_KILL_S)
        elif self._requests.stop and self._end_at == math.inf:
            self._end_at = now + self._grace_s
            self._pass_on_the_request()
        self._end(now - self._end_at)

    def _pass_on_the_request(self) -> None:
        """By a file, as all workers' signals are not; by signals where no file can be written any more."""
        try:
            self._attempt.run.stop_request.touch(mode=0o600)
        except OSError:
            self._tell("stop")

    def _end(self, late_s: float) -> None:
        """First by request, then by force, then without the agents."""
        if late_s >= TERM_TO_KILL_S + KILL_TO_LEAVE_S:
            for node in self._attempt.nodes:
                node.note({"event": "silent", "words": node.agent.printed})
        elif late_s >= TERM_TO_KILL_S:
            self._tell("kill")
        elif late_s >= 0:
            if self._requests.stop and not self._attempt.notice_failure():
                self._attempt.trouble = f"it did not stop within the {self._grace_s:g} s of --grace"
            self._tell("stop")

    def _tell(self, order: str) -> None:
        if order != self._told:
            self._told = order
            for node in self._attempt.nodes:
                node.ended_by_us |= not node.done
                node.agent.tell(do=order)
