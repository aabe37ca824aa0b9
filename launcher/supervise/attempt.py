"""One start of all of a run's processes: what is known of its nodes, and how it went."""

import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fmfsd.errors import RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.supervise.hang_detector import Hang
from launcher.transport.agent_client import Link
from launcher.transport.connect import on_the_way

LOST = {"gone": "its agent is gone", "silent": "its agent does not answer"}


@dataclass
class NodeState:
    """What is known of a node: its agent's host, its starter's process, and how that ended.

    `starts_workers`: there is no starter, the agent starts the workers. `worker_codes`: exit codes of workers by
    process, as far as the agent saw them.
    """

    agent: Link
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
    def killed_from_outside(self) -> str:
        """What somebody else did to its agent or starter, who can't say it; empty if nobody did anything."""
        if self.trouble or self.ended_by_us or self.starts_workers or self.exit_code is None or self.exit_code >= 0:
            return self.trouble
        return f"its starter was killed by {signal.Signals(-self.exit_code).name}"

    def told(self) -> dict[str, Any]:
        """What others may want to know of it, as JSON."""
        return {name: value for name, value in vars(self).items() if name not in ("agent", "done")}

    def note(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready":
            self.host, self.agent_pid = event["host"], event["pid"]
        elif kind == "started":
            self.starter_pid = event["pid"]
        elif kind == "worker-gone" and event["code"]:  # 0 is also what a kernel says that does not tell us
            self.worker_codes[event["pid"]] = event["code"]
        elif kind == "exited":
            self.exit_code, self.oom_kills, self.done = event["code"], event["oom_kills"], True
        elif kind == "failed":
            self.trouble, self.done = event["message"], True
        elif kind in LOST and not self.done:
            self.trouble, self.is_gone, self.done = _lost(event), True, True


def _lost(event: dict[str, Any]) -> str:
    words = on_the_way(event)
    return f"{LOST[event['event']]}: {words}" if words else LOST[event["event"]]


@dataclass
class Attempt:
    """One start of all nodes' processes, and how it went."""

    run: RunDir
    number: int
    nodes: list[NodeState]
    num_workers: int
    started: float = field(default_factory=time.time)
    state: str = "running"
    trouble: str = ""
    hang: Hang | None = None
    dead_rank: int | None = None
    noticed: float | None = None
    """When the coordinator first knew that it had failed, in seconds since 1970."""
    stopped_after_s: float | None = None
    """From the request to stop until everything had ended."""
    cause: str = ""

    def ranks_on(self, node: NodeState) -> range:
        """Of its workers: hosts number their processes alike."""
        each = self.num_workers // len(self.nodes)
        number = next(place for place, other in enumerate(self.nodes) if other is node)
        return range(number * each, (number + 1) * each)

    def notice_failure(self) -> bool:
        """Whether a node has ended badly, a worker has left word that it has, or one was gone or hung."""
        if self.noticed is None and (
            self.trouble
            or self.dead_rank is not None
            or any(node.done and node.exit_code != 0 for node in self.nodes)
            or self.run.crashes(self.number)
        ):
            self.noticed = time.time()
        return self.noticed is not None

    def say_stopped(self) -> None:
        """On behalf of workers that had not begun, or are between two attempts: nothing is lost."""
        step = self.run.newest_step() or 0
        self.state = "stopped"
        with suppress(OSError):
            content = {"state": "stopped", "attempt": self.number, "step": step, "metrics": {}, "resumable": True}
            write_json(self.run.outcome, content)

    def begin(self) -> None:
        """Leave word of this attempt; an outcome of an earlier one goes, so that what is there at the end is ours."""
        try:
            self.run.outcome.unlink(missing_ok=True)
            self._write()
        except OSError as error:
            raise RunFailedError(f"{self.run.path} can't be written, so no attempt was started: {error}") from error

    def write(self) -> None:
        """Best effort: on a disk that is full or gone the run is ended all the same."""
        with suppress(OSError):
            self._write()

    def _write(self) -> None:
        nodes = [{"node": number, **node.told()} for number, node in enumerate(self.nodes)]
        content = {
            "attempt": self.number,
            "state": self.state,
            "cause": self.cause,
            "workers": self.num_workers,
            "started": self.started,
            "noticed": self.noticed,
            "ended": None if self.state == "running" else time.time(),
            "stopped_after_s": self.stopped_after_s,
            "nodes": nodes,
        }
        write_json(self.run.attempt(self.number), content)
