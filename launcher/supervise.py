"""The coordinator: carries out a plan with one agent a node, from the first process to the outcome."""

import math
import selectors
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from fmfsd.files import read_json, write_json
from fmfsd.rundir import RunDir
from launcher.hosts.local import LocalAgent
from launcher.plan import ATTEMPT, INIT_METHOD, RENDEZVOUS, RUN_ID, SCRATCH, LaunchPlan

LOOK_S = 0.1
TERM_TO_KILL_S = 5.0
"""From telling a starter to end until its node's processes are killed."""
KILL_TO_LEAVE_S = 10.0
"""From telling an agent to kill them until the agent itself is given up, and killed."""
SECOND_INTERRUPT_S = 1.0
"""Two interrupts closer than this are one: a terminal and a shell may each send it."""


@dataclass
class Requests:
    """What signals and agents have asked the coordinator for. A handler only sets a value."""

    stop: bool = False
    interrupted: bool = False
    _first_interrupt: float | None = None

    def on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_interrupt is not None and now - self._first_interrupt >= SECOND_INTERRUPT_S:
            self.interrupted = True
        self._first_interrupt = self._first_interrupt or now
        self.stop = True

    def on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self.stop = True

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Signals come here instead of ending this process. A hang-up that is ignored, as under nohup, stays so."""
        handlers = {
            signal.SIGINT: self.on_interrupt,
            signal.SIGTERM: self.on_terminate,
        }
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handlers[signal.SIGHUP] = self.on_terminate
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@dataclass
class NodeState:
    """What is known of a node: its agent's host, its starter's process, and how that ended."""

    agent: LocalAgent
    host: str = ""
    agent_pid: int | None = None
    starter_pid: int | None = None
    exit_code: int | None = None
    trouble: str = ""
    ended_by_us: bool = False
    done: bool = False

    @property
    def killed_from_outside(self) -> str:
        """What somebody else did to this node's processes; empty if nobody did anything."""
        if self.trouble or self.ended_by_us or self.exit_code is None or self.exit_code >= 0:
            return self.trouble
        return f"its starter was killed by {signal.Signals(-self.exit_code).name}"

    def note(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready":
            self.host, self.agent_pid = event["host"], event["pid"]
        elif kind == "started":
            self.starter_pid = event["pid"]
        elif kind == "exited":
            self.exit_code, self.done = event["code"], True
        elif kind == "failed":
            self.trouble, self.done = event["message"], True
        elif kind == "gone" and not self.done:
            self.trouble, self.done = "its agent was killed", True


@dataclass
class Attempt:
    """One start of all nodes' processes, and how it went."""

    run: RunDir
    number: int
    nodes: list[NodeState]
    started: float = field(default_factory=time.time)
    state: str = "running"
    trouble: str = ""

    @property
    def has_failed(self) -> bool:
        """A node has ended badly, or a worker has left word that it has."""
        ended_badly = any(node.done and node.exit_code != 0 for node in self.nodes)
        return ended_badly or bool(self.run.crashes(self.number))

    def write(self) -> None:
        nodes = [
            {key: value for key, value in vars(node).items() if key not in ("agent", "done")} | {"node": number}
            for number, node in enumerate(self.nodes)
        ]
        ended = None if self.state == "running" else time.time()
        content = {"attempt": self.number, "state": self.state, "started": self.started, "ended": ended, "nodes": nodes}
        write_json(self.run.attempt(self.number), content)


def run_plan(
    plan: LaunchPlan, run: RunDir, *, grace_s: float, requests: Requests, watch: Callable[[], None]
) -> Attempt:
    """Start, watch and end one attempt. Its state is finished, stopped, failed or interrupted; nothing is left running.

    `watch` is called ten times a second. `requests` are filled by the signal handlers that the caller has set. An
    outcome of an earlier attempt is removed first: what is there at the end is this attempt's.
    """
    with ExitStack() as stack:
        scratch = _scratch()
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        agents = [LocalAgent(node.node) for node in plan.nodes]
        for agent in agents:
            stack.callback(agent.close)
        attempt = Attempt(run, run.last_attempt() + 1, [NodeState(agent) for agent in agents])
        run.stop_request.unlink(missing_ok=True)
        run.outcome.unlink(missing_ok=True)
        attempt.write()
        _start(plan, attempt, scratch)
        _Watch(attempt, requests, grace_s).until_done(watch)
    attempt.state = "interrupted" if requests.interrupted else _state(run)
    attempt.write()
    return attempt


def _scratch() -> str:
    """A folder of this attempt's own. torch reads its name as a part of a URL, in which # and ? have a meaning."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="fmfsd-", dir="/tmp" if set("#?") & set(usual) else usual)  # noqa: S108


def _start(plan: LaunchPlan, attempt: Attempt, scratch: str) -> None:
    symbols = {
        RENDEZVOUS: f"{scratch}/rendezvous",
        INIT_METHOD: f"file://{scratch}/workers",
        ATTEMPT: str(attempt.number),
        RUN_ID: uuid.uuid4().hex,
        SCRATCH: scratch,
    }
    for node, state in zip(plan.nodes, attempt.nodes, strict=True):
        ready = node.filled(symbols)
        log = str(attempt.run.starter_log(node.node))
        state.agent.tell(do="start", argv=ready.argv, env=dict(ready.env), cwd=ready.cwd, log=log, scratch=scratch)


def _state(run: RunDir) -> str:
    """The run's own word, if it has spoken; a starter's exit code says little."""
    try:
        return str(read_json(run.outcome)["state"])
    except (OSError, ValueError, KeyError):
        return "failed"


class _Watch:
    """Waits for all nodes, and ends them: when asked to, or when one of them has failed."""

    def __init__(self, attempt: Attempt, requests: Requests, grace_s: float) -> None:
        self._attempt, self._requests, self._grace_s = attempt, requests, grace_s
        self._end_at = math.inf
        self._told = ""

    def until_done(self, watch: Callable[[], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for node in self._attempt.nodes:
                selector.register(node.agent, selectors.EVENT_READ, node)
            while not all(node.done for node in self._attempt.nodes):
                for key, _ in selector.select(LOOK_S):
                    self._hear(key.data, selector)
                self._decide()
                watch()

    def _hear(self, node: NodeState, selector: selectors.BaseSelector) -> None:
        for event in node.agent.read():
            node.note(event)
            self._requests.stop |= event["event"] == "asked-to-stop"
            if event["event"] == "started":
                self._attempt.write()
            if event["event"] == "gone":
                selector.unregister(node.agent)

    def _decide(self) -> None:
        """When all must have ended, and how far beyond that it is now."""
        now = time.monotonic()
        if self._requests.interrupted:
            self._end_at = min(self._end_at, now - TERM_TO_KILL_S)
        elif self._attempt.has_failed:
            self._end_at = min(self._end_at, now + TERM_TO_KILL_S)
        elif self._requests.stop and self._end_at == math.inf:
            self._attempt.run.stop_request.touch(mode=0o600)
            self._end_at = now + self._grace_s
        self._end(now - self._end_at)

    def _end(self, late_s: float) -> None:
        """First by request, then by force, then without the agents."""
        if late_s >= TERM_TO_KILL_S + KILL_TO_LEAVE_S:
            for node in self._attempt.nodes:
                if not node.done:
                    node.note({"event": "failed", "message": "its agent does not answer"})
        elif late_s >= TERM_TO_KILL_S:
            self._tell("kill")
        elif late_s >= 0:
            if not self._attempt.has_failed:
                self._attempt.trouble = f"it did not stop within the {self._grace_s:g} s of --grace"
            self._tell("stop")

    def _tell(self, order: str) -> None:
        if order != self._told:
            self._told = order
            for node in self._attempt.nodes:
                node.ended_by_us |= not node.done
                node.agent.tell(do=order)
