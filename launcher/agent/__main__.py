"""Node agent: starts, supervises and ends the processes of one node. Imports only the standard library.

Protocol: JSON lines. On stdin: {"do": "look", ...}, {"do": "prepare", "interface", "longest", "word"}, {"do": "reach",
"addresses", "port", "word"}, {"do": "start", "argv", "env", "inherits", "cwd", "log", "scratch", "workers"}, {"do":
"dump", "pids"}, {"do": "stop"}, {"do": "kill"}, {"do": "beat"}. On stdout: {"event": "ready", "pid", "host"}, {"event":
"seen", ...}, {"event": "prepared", "scratch", "interfaces", "port"}, {"event": "reached", "interfaces"}, {"event":
"started", "pid"}, {"event": "failed", "message"}, {"event": "worker-gone", "pid", "code"}, {"event": "exited", "code",
"oom_kills"}, {"event": "asked-to-stop", "signal"}, {"event": "beat"}.

`workers` contains the environment variables of each worker, and the agent starts `argv` once per worker. If it is
empty, `argv` is a starter such as torchrun: `pid` is its process, and its children are the workers. `word` is the token
that the nodes use to recognise each other.

The agent assumes that the coordinator is gone when its stdin ends, or when nothing has arrived for --deadline seconds.
It then ends everything that it started, removes the attempt's scratch folder, and exits.
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
from launcher.agent.cgroup import count_oom_kills
from launcher.agent.describe_machine import probe_machine
from launcher.agent.processes import NodeProcesses, ProcessSpec, StarterProcess, WorkerProcesses, kill_descendants

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


class NodeAgent:
    """Starts, supervises and ends the processes of one node on behalf of the coordinator."""

    def __init__(self, deadline_s: float = math.inf) -> None:
        self._deadline_s, self._last_message_at = deadline_s, time.monotonic()
        self._listener: socket.socket | None = None
        self._port_reservation: socket.socket | None = None
        self._token = ""
        self._processes: NodeProcesses | None = None
        self._oom_kills_before = 0
        self._scratch: str | None = None
        self._unread = b""

    def run(self) -> int:
        """Serve the coordinator until it closes our stdin. Return the exit code."""
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, self._report_signal)
        signal.signal(signal.SIGINT, self._report_signal)
        _send(event="ready", pid=os.getpid(), host=socket.gethostname())
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            while self._read_messages(bool(selector.select(_POLL_S))) and not self._has_missed_deadline():
                self._poll()
        self._kill_everything()
        self._close_sockets()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return 0

    def _has_missed_deadline(self) -> bool:
        return time.monotonic() - self._last_message_at > self._deadline_s

    def _report_signal(self, number: int, _frame: FrameType | None) -> None:
        """Report a stop signal to the coordinator, which stops the whole run."""
        _send(event="asked-to-stop", signal=number)

    def _read_messages(self, readable: bool) -> bool:
        """Handle the messages that have arrived. Return False once the coordinator is gone."""
        if not readable:
            return True
        data = os.read(sys.stdin.fileno(), 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._handle(json.loads(line))
        self._last_message_at = time.monotonic()  # handling a message may have taken long while others wait in the pipe
        return bool(data)

    def _handle(self, message: dict[str, Any]) -> None:
        handler = getattr(self, f"_do_{message['do']}")
        try:
            handler(message)
        except OSError as error:
            _send(event="failed", message=str(error))

    def _do_beat(self, _order: dict[str, Any]) -> None:
        _send(event="beat")

    def _do_look(self, message: dict[str, Any]) -> None:
        _send(event="seen", **probe_machine(message, os.environ))

    def _do_prepare(self, message: dict[str, Any]) -> None:
        """Create the scratch folder and, if other nodes connect to this one, open a port."""
        self._scratch, self._token = network.create_scratch_folder(message["longest"]), message["word"]
        interfaces, port = {}, None
        if self._token:
            interfaces, self._listener = (
                network.reachable_addresses(os.environ, message["interface"]),
                network.open_listener(),
            )
            port = self._listener.getsockname()[1]
        _send(event="prepared", scratch=self._scratch, interfaces=interfaces, port=port)

    def _do_reach(self, message: dict[str, Any]) -> None:
        reachable = network.find_reachable(message["addresses"], message["port"], message["word"])
        _send(event="reached", interfaces={address: network.find_interface_to(address) for address in reachable})

    def _do_stop(self, _order: dict[str, Any]) -> None:
        if self._processes is not None:
            self._processes.terminate()

    def _do_dump(self, message: dict[str, Any]) -> None:
        workers = self._processes.workers if self._processes is not None else frozenset()
        for pid in workers.intersection(message["pids"]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)

    def _do_kill(self, _order: dict[str, Any]) -> None:
        self._kill_everything()

    def _do_start(self, message: dict[str, Any]) -> None:
        self._release_port()
        self._scratch, self._oom_kills_before = message["scratch"], count_oom_kills()
        inherits = message.get("inherits", ())
        inherited = {name: os.environ[name] for name in inherits if name in os.environ}
        argv = _with_existing_python(message["argv"]) if inherits else message["argv"]
        command = ProcessSpec(argv, _full_environment({**inherited, **message["env"]}), message["cwd"])
        workers = [
            ProcessSpec(command.argv, {**command.env, **variables}, command.cwd)
            for variables in message.get("workers", ())
        ]
        log = Path(message["log"])
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with log.open("ab") as output:
            self._processes = WorkerProcesses(workers, output) if workers else StarterProcess(command, output)
        _send(event="started", pid=self._processes.starter_pid)

    def _release_port(self) -> None:
        """Release the listening port for the starter or the first worker, and reserve it.

        They may need half a minute until they listen on it.
        """
        if self._listener is not None:
            port = self._listener.getsockname()[1]
            self._close_sockets()
            with suppress(OSError):  # it is in use already: the workers report that
                self._port_reservation = network.reserve_port(port)

    def _close_sockets(self) -> None:
        for sock in filter(None, (self._listener, self._port_reservation)):
            sock.close()
        self._listener = self._port_reservation = None

    def _poll(self) -> None:
        """Report each worker that has ended, and the node's exit code once all processes started here are gone."""
        if self._listener is not None:
            network.send_token(self._listener, self._token)
        if self._processes is None:
            return
        for pid, code in self._processes.poll().items():
            _send(event="worker-gone", pid=pid, code=code)
        if (code := self._processes.exit_code) is not None:
            self._kill_everything()
            self._processes = None
            _send(event="exited", code=code, oom_kills=count_oom_kills() - self._oom_kills_before)

    def _kill_everything(self) -> None:
        """Kill everything that the agent has started. The workers of a killed starter become our children and are
        killed too."""
        if self._processes is not None:
            self._processes.kill()
        kill_descendants()


def _with_existing_python(argv: list[str]) -> list[str]:
    """Return the command of a starter, with our own Python if its Python does not exist inside a wrapper."""
    return argv if shutil.which(argv[0]) else [sys.executable, *argv[1:]]


def _full_environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the complete environment of a command to start.

    FMFSD_VISIBLE_GPUS: a starter that selects GPUs numbers them on the whole machine, and we may have only some of
    them, for example on a node that Slurm shares between jobs.
    """
    environment = {**network.select_machine_variables(os.environ), **variables, "FMFSD_AGENT_PID": str(os.getpid())}
    gpus = environment.get("CUDA_VISIBLE_DEVICES")
    return environment if gpus is None else {**environment, "FMFSD_VISIBLE_GPUS": gpus}


def _send(**message: Any) -> None:
    with suppress(BrokenPipeError):  # the coordinator is gone; so the end of our stdin follows
        os.write(sys.stdout.fileno(), (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--deadline", type=float, default=math.inf)
    raise SystemExit(NodeAgent(parser.parse_args().deadline).run())
