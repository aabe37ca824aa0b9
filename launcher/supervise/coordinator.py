"""The coordinator: runs one attempt of a plan with one agent per node, from the first process to the last."""

import math
import selectors
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.agent.network import create_scratch_folder
from launcher.plan.launch_plan import LaunchPlan, NodePlan
from launcher.plan.placeholders import SCRATCH
from launcher.resources.site import start_agent_process
from launcher.supervise.attempt import Attempt, NodeState
from launcher.supervise.hang_detector import HangDetector
from launcher.supervise.rendezvous import RendezvousError, run_rendezvous
from launcher.supervise.stop_requests import StopRequests
from launcher.transport.agent_client import AgentConnection, AgentProcess, close_agents_together
from launcher.transport.connect_with_retry import open_connections

POLL_S = 0.1
TERM_TO_KILL_S = 5.0
"""From SIGTERM to a node's starter until the node's processes are killed."""
KILL_TO_ABANDON_S = 10.0
"""From the kill command to an agent until the agent itself counts as lost and is killed."""
OUTCOME_TO_TERM_S = 30.0
"""From the run's outcome file until the remaining processes get SIGTERM."""
STACK_DUMP_S = 0.5
"""Time for hanging workers to dump their stacks."""
CHECK_REQUEST_EVERY_S = 0.5
"""Interval of the checks for a stop request."""
HEARTBEAT_EVERY_S = 5.0
"""Interval of the heartbeats to agents on other machines, which answer them."""


def start_node_agent(node: NodePlan) -> AgentProcess:
    """Start the agent that the plan names for this node."""
    return start_agent_process(node.agent, node.host)


def run_attempt(
    plan: LaunchPlan,
    run: RunDir,
    *,
    grace_s: float,
    hang_timeout_s: float = math.inf,
    requests: StopRequests,
    on_poll: Callable[[], None],
    start_agent: Callable[[NodePlan], AgentConnection] = start_node_agent,
) -> Attempt:
    """Start, supervise and end one attempt. Its state is finished, stopped, failed or interrupted; no process is left.

    `on_poll` is called ten times a second. The caller has installed the signal handlers of `requests`. Raises
    RunFailedError if the attempt's record can't be written, as the record fences off workers of earlier attempts.
    """
    with ExitStack() as stack:
        scratch = (
            create_scratch_folder(plan.max_scratch_length, plan.scratch_parent)
            if plan.rendezvous_place == "file here"
            else ""
        )
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        agents = _open_agents(plan, run, requests, start_agent, stack.enter_context(close_agents_together()))
        attempt = Attempt(
            run,
            run.last_attempt() + 1,
            [
                NodeState(agent, starts_workers=bool(node.workers))
                for node, agent in zip(plan.nodes, agents, strict=True)
            ],
            plan.num_workers,
        )
        attempt.create_record()
        detector = HangDetector(run, attempt.number, plan.num_workers, hang_timeout_s=hang_timeout_s)
        with suppress(RendezvousError):
            _start_nodes(plan, attempt, scratch, requests)
            _Supervisor(attempt, requests, detector, grace_s).wait(on_poll)
    if requests.requested_at is not None:
        attempt.stopped_after_s = round(time.monotonic() - requests.requested_at, 3)
    attempt.state = _read_state(run, attempt.number)
    if attempt.state == "failed" and requests.interrupted:
        attempt.state = "interrupted"
    elif attempt.state == "failed" and requests.is_stop_requested and not detector.has_reached_training():
        attempt.write_stopped_outcome()  # a signal to the whole process group ended workers that had no handler yet
    attempt.write_record()
    return attempt


def _open_agents(
    plan: LaunchPlan,
    run: RunDir,
    requests: StopRequests,
    start_agent: Callable[[NodePlan], AgentConnection],
    agents: list[AgentConnection],
) -> list[AgentConnection]:
    """Start the agent of each node and return them; they are appended to `agents` too. OSError if a start fails."""
    starts = [partial(start_agent, node) for node in plan.nodes]
    if plan.is_here:
        for start in starts:
            agents.append(start())
        return list(agents)

    def stop() -> bool:
        requests.check_files(run.stop_request)
        return requests.is_stop_requested

    links = open_connections(starts, agents, stop=stop)
    for link in links:
        if isinstance(link, OSError):
            raise link
    return [link for link in links if isinstance(link, AgentConnection)]


def _start_nodes(plan: LaunchPlan, attempt: Attempt, scratch: str, requests: StopRequests) -> None:
    values_of_nodes = run_rendezvous(plan, attempt, scratch, requests)
    for node, state, values in zip(plan.nodes, attempt.nodes, values_of_nodes, strict=True):
        filled, log = node.fill_placeholders(values), str(attempt.run.starter_log(node.node))
        process = {"argv": filled.argv, "env": dict(filled.env), "cwd": filled.cwd, "workers": filled.workers}
        process |= {"inherits": filled.inherits}
        state.agent.send(do="start", **process, log=log, scratch=values[SCRATCH])


def _read_state(run: RunDir, attempt: int) -> str:
    """Return the state in the outcome of this attempt, or "failed" without one; starters' exit codes are unreliable."""
    try:
        outcome = read_json(run.outcome)
        return str(outcome["state"]) if outcome["attempt"] == attempt else "failed"
    except (OSError, ValueError, KeyError):
        return "failed"


class _Supervisor:
    """Waits for all nodes, and ends them on a stop request or when one of them has failed."""

    def __init__(self, attempt: Attempt, requests: StopRequests, detector: HangDetector, grace_s: float) -> None:
        self._attempt, self._requests, self._detector, self._grace_s = attempt, requests, detector, grace_s
        self._end_at, self._check_request_at, self._heartbeat_at = math.inf, 0.0, 0.0
        self._sent = ""

    def wait(self, on_poll: Callable[[], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for node in self._attempt.nodes:
                selector.register(node.agent, selectors.EVENT_READ, node)
            while not all(node.done for node in self._attempt.nodes):
                for key, _ in selector.select(POLL_S):
                    self._read_events(key.data, selector)
                self._send_heartbeats()
                self._check()
                self._enforce_deadline()
                on_poll()

    def _read_events(self, node: NodeState, selector: selectors.BaseSelector) -> None:
        for event in node.agent.read():
            node.apply_event(event)
            if event["event"] == "asked-to-stop":
                self._requests.request_stop()
            if event["event"] == "worker-gone" and self._attempt.dead_rank is None:
                self._attempt.dead_rank = self._detector.find_rank(event["pid"], self._attempt.ranks_on(node))
            if event["event"] == "started":
                self._attempt.write_record()
            if event["event"] == "gone":
                selector.unregister(node.agent)

    def _send_heartbeats(self) -> None:
        if time.monotonic() >= self._heartbeat_at:
            self._heartbeat_at = time.monotonic() + HEARTBEAT_EVERY_S
            for node in self._attempt.nodes:
                node.agent.send_heartbeat()
                if node.agent.is_silent:
                    node.apply_event({"event": "silent", "words": node.agent.startup_output})

    def _check(self) -> None:
        """Check the run directory for a stop request and an outcome, and the workers for a hang."""
        now = time.monotonic()
        if now >= self._check_request_at:
            self._check_request_at = now + CHECK_REQUEST_EVERY_S
            self._requests.check_files(self._attempt.run.stop_request)
            if self._end_at == math.inf and _read_state(self._attempt.run, self._attempt.number) != "failed":
                self._end_at = now + OUTCOME_TO_TERM_S
        if not self._attempt.detect_failure() and (hang := self._detector.poll()):
            self._attempt.hang, self._attempt.problem = hang, hang.text
            self._end_at = now - TERM_TO_KILL_S + STACK_DUMP_S
            for node in self._attempt.nodes:
                node.agent.send(do="dump", pids=list(hang.pids.values()))

    def _enforce_deadline(self) -> None:
        """Set the time by which all processes must have ended, and end them once it has passed."""
        now = time.monotonic()
        if self._requests.interrupted:
            self._end_at = min(self._end_at, now - TERM_TO_KILL_S)
        elif self._attempt.detect_failure():
            self._end_at = min(self._end_at, now + TERM_TO_KILL_S)
        elif self._requests.is_stop_requested and self._end_at == math.inf:
            self._end_at = now + self._grace_s
            self._forward_stop_request()
        self._end(now - self._end_at)

    def _forward_stop_request(self) -> None:
        """Forward the stop request to the workers by a file; by signals if no file can be written any more."""
        try:
            self._attempt.run.stop_request.touch(mode=0o600)
        except OSError:
            self._command_once("stop")

    def _end(self, late_s: float) -> None:
        """End the nodes: first with SIGTERM, then with SIGKILL, then by giving up their agents."""
        if late_s >= TERM_TO_KILL_S + KILL_TO_ABANDON_S:
            for node in self._attempt.nodes:
                node.apply_event({"event": "silent", "words": node.agent.startup_output})
        elif late_s >= TERM_TO_KILL_S:
            self._command_once("kill")
        elif late_s >= 0:
            if self._requests.is_stop_requested and not self._attempt.detect_failure():
                self._attempt.problem = f"it did not stop within the {self._grace_s:g} s of --grace"
            self._command_once("stop")

    def _command_once(self, command: str) -> None:
        """Send `command` to all agents, unless it was the last one sent."""
        if command != self._sent:
            self._sent = command
            for node in self._attempt.nodes:
                node.ended_by_us |= not node.done
                node.agent.send(do=command)
