"""A node's agent: starts, watches and ends that node's processes. Only the standard library is imported.

JSON lines. On stdin: {"do": "look", ...}, {"do": "prepare", "interface", "longest", "word"}, {"do": "reach",
"addresses", "port", "word"}, {"do": "start", "argv", "env", "cwd", "log", "scratch", "is_worker"}, {"do": "dump",
"pids"}, {"do": "stop"}, {"do": "kill"}, {"do": "beat"}. On stdout: {"event": "ready", "pid", "host"}, {"event":
"seen", ...}, {"event": "prepared", "scratch", "interfaces", "port"}, {"event": "reached", "interfaces"}, {"event":
"started", "pid"}, {"event": "failed", "message"}, {"event": "worker-gone", "pid", "code"}, {"event": "exited", "code",
"oom_kills"}, {"event": "asked-to-stop", "signal"}, {"event": "beat"}.

When its stdin ends, or nothing has come from there for the seconds of --deadline, its coordinator is gone: it ends
everything that it started, removes the attempt's scratch folder, and ends.
"""

import argparse
import ctypes
import json
import math
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.agent import node
from launcher.agent.cgroup import oom_kills
from launcher.agent.look import look
from launcher.agent.ties import die_with_me

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_S = 0.05
_REAP_S = 5.0


class NodeAgent:
    """One node's processes. Those whose parent died become children of the agent, so none is lost sight of."""

    def __init__(self, deadline_s: float = math.inf) -> None:
        self._deadline_s, self._heard_at = deadline_s, time.monotonic()
        self._listener: socket.socket | None = None
        self._holder: socket.socket | None = None
        self._word = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._is_worker = False
        self._workers = frozenset[int]()
        self._oom_kills_before = 0
        self._scratch: str | None = None
        self._unread = b""

    def run(self) -> int:
        """Serve the coordinator until it closes our stdin."""
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, self._pass_on)
        signal.signal(signal.SIGINT, self._pass_on)
        _say(event="ready", pid=os.getpid(), host=socket.gethostname())
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            while self._listen(bool(selector.select(_LOOK_S))) and not self._is_forgotten():
                self._look()
        self._end_everything()
        self._close_sockets()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return 0

    def _is_forgotten(self) -> bool:
        return time.monotonic() - self._heard_at > self._deadline_s

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Somebody asked this agent to stop: the whole run stops, and that is the coordinator's to do."""
        _say(event="asked-to-stop", signal=number)

    def _listen(self, readable: bool) -> bool:
        """Obey what has arrived; False once the coordinator is gone."""
        if not readable:
            return True
        data = os.read(sys.stdin.fileno(), 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))
        self._heard_at = time.monotonic()  # an order may have taken long, while others wait to be read
        return bool(data)

    def _obey(self, order: dict[str, Any]) -> None:
        act = getattr(self, f"_do_{order['do']}")
        try:
            act(order)
        except OSError as error:
            _say(event="failed", message=str(error))

    def _do_beat(self, _order: dict[str, Any]) -> None:
        _say(event="beat")

    def _do_look(self, order: dict[str, Any]) -> None:
        _say(event="seen", **look(order, os.environ))

    def _do_prepare(self, order: dict[str, Any]) -> None:
        """Get ready to meet others: with a folder and, if they are to come here, a port."""
        self._scratch, self._word = node.scratch_folder(order["longest"]), order["word"]
        interfaces, port = {}, None
        if self._word:
            interfaces, self._listener = node.addresses(os.environ, order["interface"]), node.listen()
            port = self._listener.getsockname()[1]
        _say(event="prepared", scratch=self._scratch, interfaces=interfaces, port=port)

    def _do_reach(self, order: dict[str, Any]) -> None:
        found = node.reached(order["addresses"], order["port"], order["word"])
        _say(event="reached", interfaces={address: node.interface_to(address) for address in found})

    def _do_stop(self, _order: dict[str, Any]) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def _do_dump(self, order: dict[str, Any]) -> None:
        for pid in self._workers.intersection(order["pids"]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)

    def _do_kill(self, _order: dict[str, Any]) -> None:
        self._end_everything()

    def _do_start(self, order: dict[str, Any]) -> None:
        self._leave_the_port()
        self._scratch, self._oom_kills_before = order["scratch"], oom_kills()
        self._is_worker = order.get("is_worker", False)
        log = Path(order["log"])
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                order["argv"],
                env=_told(order["env"]),
                cwd=order["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_me(),
            )
        _say(event="started", pid=self._child.pid)

    def _leave_the_port(self) -> None:
        """To the starter or the first worker, which may need half a minute until it listens there."""
        if self._listener is not None:
            port = self._listener.getsockname()[1]
            self._close_sockets()
            with suppress(OSError):  # it is in use already: that is the workers' to say
                self._holder = node.hold(port)

    def _close_sockets(self) -> None:
        for each in filter(None, (self._listener, self._holder)):
            each.close()
        self._listener = self._holder = None

    def _look(self) -> None:
        """Tell of each worker's end and of the starter's, of that once nothing that it started is left."""
        if self._listener is not None:
            node.greet(self._listener, self._word)
        if self._child is None:
            return
        if self._child.poll() is None:
            self._look_at_workers(self._child.pid)
            return
        code = self._child.returncode
        if self._is_worker:
            _say(event="worker-gone", pid=self._child.pid, code=code)
        self._end_everything()
        self._child = None
        _say(event="exited", code=code, oom_kills=oom_kills() - self._oom_kills_before)

    def _look_at_workers(self, starter: int) -> None:
        """The starter itself waits for all of them, with the grace, before it says a word. A lone worker needs none.

        DeepSpeed's looks once a second, and tells of one exit code: until then it can be read here.
        """
        children = [starter] if self._is_worker else _children_of(starter)
        ended = {pid: code for pid in children if (code := _exit_code(pid)) is not None}
        now = frozenset(children) - ended.keys()
        still = {pid for pid in self._workers - now if _is_child(pid, starter)}  # of a thread that has just ended
        for pid in self._workers - now - still:
            _say(event="worker-gone", pid=pid, code=ended.get(pid))
        self._workers = now | still

    def _end_everything(self) -> None:
        """Kill the starter; its workers are tied to it, and become our children when it is gone."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        deadline = time.monotonic() + _REAP_S
        while _reap() and time.monotonic() < deadline:
            for pid in _children_of(os.getpid()):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def _told(variables: dict[str, str]) -> dict[str, str]:
    """All variables of what is started. A starter that chooses GPUs does so by their numbers on the whole machine, of
    which we may have a part, as of a node that Slurm shares out."""
    told = {**node.own_variables(os.environ), **variables, "FMFSD_AGENT_PID": str(os.getpid())}
    gpus = told.get("CUDA_VISIBLE_DEVICES")
    return told if gpus is None else {**told, "FMFSD_VISIBLE_GPUS": gpus}


def _reap() -> bool:
    """Collect ended children; whether any is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _children_of(parent: int) -> list[int]:
    """A process's children, those that it inherited included."""
    found = list[int]()
    with suppress(OSError):  # it has just ended
        for task in _tasks(parent):
            with suppress(OSError):  # just this thread of it has
                found += map(int, (task / "children").read_text().split())
    return found


def _is_child(pid: int, parent: int) -> bool:
    """Whether it lives and is."""
    state, above, *_ = _stat(pid) or ("X", "0")
    return state not in "ZX" and int(above) == parent


def _exit_code(pid: int) -> int | None:
    """Of a process that has ended, until its parent has taken note of that; None: it lives, or is gone."""
    state, *others = _stat(pid) or ("X",)
    return os.waitstatus_to_exitcode(int(others[-1])) if state == "Z" else None


def _stat(pid: int) -> list[str]:
    """What the kernel tells of it, from its state to its exit code; nothing of one that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _tasks(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def _say(**message: Any) -> None:
    with suppress(BrokenPipeError):  # the coordinator is gone; the end of our stdin tells us the same
        os.write(sys.stdout.fileno(), (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--deadline", type=float, default=math.inf)
    raise SystemExit(NodeAgent(parser.parse_args().deadline).run())
