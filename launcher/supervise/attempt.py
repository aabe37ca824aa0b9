"""One attempt of a run: the state of its nodes, its result, and its record `attempts/NNNN.json`."""

import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fmfsd.errors import RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.supervise.hang_detector import Hang
from launcher.transport.agent_client import AgentConnection
from launcher.transport.connect_with_retry import describe_lost_connection

_LOST_AGENT = {"gone": "its agent is gone", "silent": "its agent does not answer"}


@dataclass
class NodeState:
    """State of one node: its agent and host, its starter's process, and how that process ended.

    `starts_workers`: no starter, the agent starts the workers itself. `worker_codes`: exit codes of workers by pid, as
    far as the agent saw them.
    """

    agent: AgentConnection
    starts_workers: bool = False
    host: str = ""
    agent_pid: int | None = None
    starter_pid: int | None = None
    exit_code: int | None = None
    worker_codes: dict[int, int] = field(default_factory=dict)
    oom_kills: int = 0
    trouble: str = ""
    is_gone: bool = False
    ended_by_us: bool = False
    done: bool = False

    @property
    def external_kill(self) -> str:
        """Return how the agent or the starter was killed by another process or lost; "" if neither was."""
        if self.trouble or self.ended_by_us or self.starts_workers or self.exit_code is None or self.exit_code >= 0:
            return self.trouble
        return f"its starter was killed by {signal.Signals(-self.exit_code).name}"

    def to_dict(self) -> dict[str, Any]:
        """Return the node's entry in the attempt's record, as JSON."""
        return {name: value for name, value in vars(self).items() if name not in ("agent", "done")}

    def apply_event(self, event: dict[str, Any]) -> None:
        """Update the state by an event of the agent."""
        kind = event["event"]
        if kind == "ready":
            self.host, self.agent_pid = event["host"], event["pid"]
        elif kind == "started":
            self.starter_pid = event["pid"]
        elif kind == "worker-gone" and event["code"]:  # the kernel also reports 0 where it hides exit codes
            self.worker_codes[event["pid"]] = event["code"]
        elif kind == "exited":
            self.exit_code, self.oom_kills, self.done = event["code"], event["oom_kills"], True
        elif kind == "failed":
            self.trouble, self.done = event["message"], True
        elif kind in _LOST_AGENT and not self.done:
            self.trouble, self.is_gone, self.done = _describe_lost_agent(event), True, True


def _describe_lost_agent(event: dict[str, Any]) -> str:
    details = describe_lost_connection(event)
    problem = _LOST_AGENT[event["event"]]
    return f"{problem}: {details}" if details else problem


@dataclass
class Attempt:
    """One start of all nodes' processes, and its result."""

    run: RunDir
    number: int
    nodes: list[NodeState]
    num_workers: int
    started_at: float = field(default_factory=time.time)
    state: str = "running"
    problem: str = ""
    hang: Hang | None = None
    dead_rank: int | None = None
    noticed_at: float | None = None
    """When the coordinator detected the failure, in seconds since 1970."""
    stopped_after_s: float | None = None
    """Seconds from the stop request until all processes had ended."""
    cause: str = ""

    def ranks_on(self, node: NodeState) -> range:
        """Return the ranks of the node's workers; every node has the same number of them."""
        workers_per_node = self.num_workers // len(self.nodes)
        index = next(index for index, other in enumerate(self.nodes) if other is node)
        return range(index * workers_per_node, (index + 1) * workers_per_node)

    def detect_failure(self) -> bool:
        """Return whether the attempt has failed: a node failed, a worker left a crash file, died or hung.

        Sets `noticed_at` when that is first true.
        """
        if self.noticed_at is None and (
            self.problem
            or self.dead_rank is not None
            or any(node.done and node.exit_code != 0 for node in self.nodes)
            or self.run.crash_reports(self.number)
        ):
            self.noticed_at = time.time()
        return self.noticed_at is not None

    def write_stopped_outcome(self) -> None:
        """Set the state and the run's outcome to "stopped", for workers that could not write the outcome themselves.

        These had not started to train, or the run is between two attempts: no work is lost.
        """
        step = self.run.newest_step() or 0
        self.state = "stopped"
        with suppress(OSError):
            content = {"state": "stopped", "attempt": self.number, "step": step, "metrics": {}, "resumable": True}
            write_json(self.run.outcome, content)

    def create_record(self) -> None:
        """Create the attempt's record and remove the outcome of an earlier attempt. RunFailedError if that fails."""
        try:
            self.run.outcome.unlink(missing_ok=True)
            self._write()
        except OSError as error:
            raise RunFailedError(f"{self.run.path} can't be written, so no attempt was started: {error}") from error

    def write_record(self) -> None:
        """Write the record, best effort: the run is ended even if the disk is not writable."""
        with suppress(OSError):
            self._write()

    def _write(self) -> None:
        nodes = [{"node": number, **node.to_dict()} for number, node in enumerate(self.nodes)]
        content = {
            "attempt": self.number,
            "state": self.state,
            "cause": self.cause,
            "workers": self.num_workers,
            "started": self.started_at,
            "noticed": self.noticed_at,
            "ended": None if self.state == "running" else time.time(),
            "stopped_after_s": self.stopped_after_s,
            "nodes": nodes,
        }
        write_json(self.run.attempt(self.number), content)
