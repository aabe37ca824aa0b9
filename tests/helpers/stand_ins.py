"""Test doubles: for torchrun, under the real coordinator and real agents; for agents; for crash files of workers."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.plan.launch_plan import LaunchPlan, NodePlan
from launcher.plan.placeholders import ADDRESS, ATTEMPT, INTERFACE, NCCL_INTERFACE, PORT, SCRATCH
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_attempt
from launcher.supervise.stop_requests import StopRequests
from launcher.transport.agent_client import AgentProcess
from tests.helpers.processes import wait_until

PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
run, node, attempt = Path(sys.argv[1]), sys.argv[2], int(os.environ["FMFSD_ATTEMPT"])
def outcome(state):
    (run / "outcome.json").write_text(json.dumps({"state": state, "attempt": attempt, "step": 1, "metrics": {}}))
def until(condition):
    while not condition(): time.sleep(0.01)
(run / f"pid-{node}").write_text(str(os.getpid()))
"""
STARTED = "(run / 'progress' / 'rank-0.json').write_text(json.dumps({'attempt': 1, 'state': 'train', 'pid': 1}))\n"
UNTIL_STOPPED = "until((run / 'stop-request').exists)\noutcome('stopped')\n"
FOR_EVER = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nuntil(lambda: False)\n"
WITH_CHILD = (
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
)

WRITES_ITS_ENVIRONMENT = """
names = ("ADDRESS", "PORT", "INTERFACE", "NCCL", "SCRATCH")
(run / f"given-{node}").write_text(json.dumps({name: os.environ[name] for name in names}))
outcome("finished")
"""


def make_plan(run: RunDir, *scripts: str) -> LaunchPlan:
    nodes = tuple(
        NodePlan(
            node=number,
            argv=(sys.executable, "-c", PRELUDE + script, str(run.path), str(number)),
            env={"PATH": os.environ["PATH"], "FMFSD_ATTEMPT": ATTEMPT, "FMFSD_TEST_ID": os.environ["FMFSD_TEST_ID"]},
            cwd=str(run.path),
        )
        for number, script in enumerate(scripts)
    )
    return LaunchPlan(str(run.path), "cpu", 1, nodes)


def make_plan_for_hosts(
    run: RunDir, script: str, *agent_commands: tuple[str, ...], interface: str | None = None
) -> LaunchPlan:
    """Return a plan with one node per agent command of `agent_commands`, as if each were on another host."""
    placeholders = {
        "ADDRESS": ADDRESS,
        "PORT": PORT,
        "INTERFACE": INTERFACE,
        "NCCL": NCCL_INTERFACE,
        "SCRATCH": SCRATCH,
    }
    env = {
        **placeholders,
        "FMFSD_ATTEMPT": ATTEMPT,
        "PATH": os.environ["PATH"],
        "FMFSD_TEST_ID": os.environ["FMFSD_TEST_ID"],
    }
    nodes = (
        NodePlan(
            number, (sys.executable, "-c", PRELUDE + script, str(run.path), str(number)), env, "/", "far", agent_command
        )
        for number, agent_command in enumerate(agent_commands)
    )
    return LaunchPlan(str(run.path), "cpu", 1, tuple(nodes), interface=interface)


def run_scripts(run: RunDir, *scripts: str, grace_s: float = 20.0, requests: StopRequests | None = None) -> Attempt:
    return run_attempt(
        make_plan(run, *scripts), run, grace_s=grace_s, requests=requests or StopRequests(), on_poll=lambda: None
    )


def wait_for_starter(run: RunDir, node: int) -> int:
    """Wait until the starter of a node runs; return its pid."""
    path = run.path / f"pid-{node}"
    return int(wait_until(lambda: path.exists() and path.read_text(), f"starter of node {node}"))


def start_thread(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def run_scripts_with_signals(run: RunDir, send: Callable[[], None], *scripts: str) -> Attempt:
    """Run a plan of `scripts` with signal handlers installed, while `send` sends signals from another thread."""
    requests = StopRequests()
    with requests.install_handlers():
        thread = start_thread(send)
        attempt = run_scripts(run, *scripts, requests=requests)
    thread.join()
    return attempt


class NoAgent(AgentProcess):
    """An agent that starts nothing."""

    def __init__(self) -> None:
        pass


def write_crash_file(
    run: RunDir, rank: int, message: str, *, time: float, kind: str = "RuntimeError", expected: bool = False
) -> None:
    content: dict[str, Any] = {
        "rank": rank,
        "node": rank // 2,
        "host": "here",
        "pid": 100 + rank,
        "time": time,
        "step": 7,
        "type": kind,
        "message": message,
        "expected": expected,
        "resumable": True,
        "worth_another_attempt": True,
        "traceback": f"Traceback of rank {rank}\n",
    }
    write_json(run.crash_report(1, rank), content)
