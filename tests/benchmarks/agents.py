"""How starting and stopping grow with the number of nodes, and the launcher's memory.

Real agents, each of which starts a stand-in for torchrun; they meet at an address as those of several hosts do. All of
them share this machine.

python -m tests.benchmarks.agents [--nodes 1,4,16,64] [--rounds N]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from fmfsd.run.run_dir import RunDir
from launcher.plan.placeholders import ATTEMPT, INTERFACE
from launcher.plan.plan import LaunchPlan, NodePlan
from launcher.supervise.coordinator import run_plan
from launcher.supervise.run_plan import Execution
from launcher.supervise.stop_requests import Requests
from launcher.transport.agent_client import AGENT
from tests.benchmarks.table import print_table, spread

STAND_IN = """
echo up; while [ ! -e "$1/stop-request" ]; do sleep 0.05; done
[ "$2" != 0 ] || printf '{"state": "stopped", "attempt": %s, "step": 1}' "$FMFSD_ATTEMPT" > "$1/outcome.json"
"""


def plan(run: RunDir, nodes: int) -> LaunchPlan:
    return LaunchPlan(
        str(run.path),
        "cpu",
        1,
        tuple(
            NodePlan(
                node=node,
                argv=("/bin/sh", "-c", STAND_IN, "sh", str(run.path), str(node)),
                env={"PATH": os.environ["PATH"], "FMFSD_ATTEMPT": ATTEMPT, "IF": INTERFACE},
                cwd=str(run.path),
                host=f"host-{node}",
                agent=(*AGENT, "--deadline", "60"),
            )
            for node in range(nodes)
        ),
    )


def one(folder: Path, nodes: int) -> dict[str, float]:
    """Seconds from the coordinator's start until all nodes' processes run, and from a request until all have ended;
    and this process's largest size."""
    assert Execution is not None  # what a launch has in memory
    run, requests, up = RunDir(folder), Requests(), list[float]()
    run.create()

    def ask_once_all_run() -> None:
        while sum(log.stat().st_size > 0 for log in run.logs.glob("node-*/starter.log")) < nodes:
            time.sleep(0.005)
        up.append(time.perf_counter())
        requests.ask()

    watcher = threading.Thread(target=ask_once_all_run, daemon=True)
    watcher.start()
    start = time.perf_counter()
    attempt = run_plan(plan(run, nodes), run, grace_s=60, requests=requests, watch=lambda: None)
    end = time.perf_counter()
    assert attempt.state == "stopped", attempt
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"start_s": up[0] - start, "stop_s": end - up[0], "peak_mib": peak}


def in_own_process(nodes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.agents", "--one", str(nodes), folder]
        return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(Path(asked.one[1]) / "run", int(asked.one[0]))))
        return
    rows = []
    for nodes in map(int, asked.nodes.split(",")):
        rounds = [in_own_process(nodes) for _ in range(asked.rounds)]
        start, stop = ([each[name] for each in rounds] for name in ("start_s", "stop_s"))
        a_node = f"{1000 * statistics.median(start) / nodes:.0f}"
        peak = f"{max(each['peak_mib'] for each in rounds):.0f}"
        rows.append([nodes, spread(start, 2), a_node, spread(stop, 2), peak])
    print_table(["nodes", "start, s", "start, ms a node", "stop, s", "launcher's memory at most, MiB"], rows)


if __name__ == "__main__":
    main()
