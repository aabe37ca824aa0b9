"""A node's agent: starts, watches and ends that node's processes. Only the standard library is imported.

JSON lines. On stdin: {"do": "look", ...}, {"do": "prepare", "interface", "longest", "word"}, {"do": "reach",
"addresses", "port", "word"}, {"do": "start", "argv", "env", "inherits", "cwd", "log", "scratch", "workers"}, {"do":
"dump", "pids"}, {"do": "stop"}, {"do": "kill"}, {"do": "beat"}. On stdout: {"event": "ready", "pid", "host"}, {"event":
"seen", ...}, {"event": "prepared", "scratch", "interfaces", "port"}, {"event": "reached", "interfaces"}, {"event":
"started", "pid"}, {"event": "failed", "message"}, {"event": "worker-gone", "pid", "code"}, {"event": "exited", "code",
"oom_kills"}, {"event": "asked-to-stop", "signal"}, {"event": "beat"}.

`workers` has the variables of each worker that `argv` is started as; without any, `argv` is a starter, whose children
are the workers, and `pid` its process.

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
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.agent import network
from launcher.agent.cgroup import oom_kills
from launcher.agent.probe import look
from launcher.agent.processes import Command, NodeProcesses, StarterProcess, WorkerProcesses, end_descendants

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_S = 0.05


class NodeAgent:
    """Starts, watches and ends one node's processes on behalf of the coordinator."""

    def __init__(self, deadline_s: float = math.inf) -> None:
        self._deadline_s, self._heard_at = deadline_s, time.monotonic()
        self._listener: socket.socket | None = None
        self._holder: socket.socket | None = None
        self._word = ""
        self._processes: NodeProcesses | None = None
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
        self._scratch, self._word = network.scratch_folder(order["longest"]), order["word"]
        interfaces, port = {}, None
        if self._word:
            interfaces, self._listener = network.addresses(os.environ, order["interface"]), network.listen()
            port = self._listener.getsockname()[1]
        _say(event="prepared", scratch=self._scratch, interfaces=interfaces, port=port)

    def _do_reach(self, order: dict[str, Any]) -> None:
        found = network.reached(order["addresses"], order["port"], order["word"])
        _say(event="reached", interfaces={address: network.interface_to(address) for address in found})

    def _do_stop(self, _order: dict[str, Any]) -> None:
        if self._processes is not None:
            self._processes.terminate()

    def _do_dump(self, order: dict[str, Any]) -> None:
        workers = self._processes.workers if self._processes is not None else frozenset()
        for pid in workers.intersection(order["pids"]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)

    def _do_kill(self, _order: dict[str, Any]) -> None:
        self._end_everything()

    def _do_start(self, order: dict[str, Any]) -> None:
        self._leave_the_port()
        self._scratch, self._oom_kills_before = order["scratch"], oom_kills()
        inherits = order.get("inherits", ())
        inherited = {name: os.environ[name] for name in inherits if name in os.environ}
        argv = _with_python(order["argv"]) if inherits else order["argv"]
        command = Command(argv, _all_variables({**inherited, **order["env"]}), order["cwd"])
        workers = [Command(command.argv, {**command.env, **own}, command.cwd) for own in order.get("workers", ())]
        log = Path(order["log"])
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with log.open("ab") as output:
            self._processes = WorkerProcesses(workers, output) if workers else StarterProcess(command, output)
        _say(event="started", pid=self._processes.starter_pid)

    def _leave_the_port(self) -> None:
        """To the starter or the first worker, which may need half a minute until it listens there."""
        if self._listener is not None:
            port = self._listener.getsockname()[1]
            self._close_sockets()
            with suppress(OSError):  # it is in use already: that is the workers' to say
                self._holder = network.hold(port)

    def _close_sockets(self) -> None:
        for each in filter(None, (self._listener, self._holder)):
            each.close()
        self._listener = self._holder = None

    def _look(self) -> None:
        """Report each worker's end, and the node's exit code once nothing that was started here is left."""
        if self._listener is not None:
            network.greet(self._listener, self._word)
        if self._processes is None:
            return
        for pid, code in self._processes.poll().items():
            _say(event="worker-gone", pid=pid, code=code)
        if (code := self._processes.exit_code) is not None:
            self._end_everything()
            self._processes = None
            _say(event="exited", code=code, oom_kills=oom_kills() - self._oom_kills_before)

    def _end_everything(self) -> None:
        """Kill what the agent has started; workers of a starter are tied to it, and become our children without it."""
        if self._processes is not None:
            self._processes.kill()
        end_descendants()


def _with_python(argv: list[str]) -> list[str]:
    """Return the launcher's command with our own Python if the launcher's is missing inside a wrapper."""
    return argv if shutil.which(argv[0]) else [sys.executable, *argv[1:]]


def _all_variables(variables: dict[str, str]) -> dict[str, str]:
    """All variables of what is started. A starter that chooses GPUs does so by their numbers on the whole machine, of
    which we may have a part, as of a node that Slurm shares out."""
    found = {**network.own_variables(os.environ), **variables, "FMFSD_AGENT_PID": str(os.getpid())}
    gpus = found.get("CUDA_VISIBLE_DEVICES")
    return found if gpus is None else {**found, "FMFSD_VISIBLE_GPUS": gpus}


def _say(**message: Any) -> None:
    with suppress(BrokenPipeError):  # the coordinator is gone; the end of our stdin tells us the same
        os.write(sys.stdout.fileno(), (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--deadline", type=float, default=math.inf)
    raise SystemExit(NodeAgent(parser.parse_args().deadline).run())
