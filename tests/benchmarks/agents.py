"""Start time, stop time and launcher memory by number of nodes.

Real node agents, each of which starts a stub instead of torchrun; their rendezvous is that of several hosts. All of
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
from launcher.plan.launch_plan import LaunchPlan, NodePlan
from launcher.plan.placeholders import ATTEMPT, INTERFACE
from launcher.supervise.coordinator import run_attempt
from launcher.supervise.execute_plan import Execution
from launcher.supervise.stop_requests import StopRequests
from launcher.transport.agent_client import AGENT_COMMAND
from tests.benchmarks.table import print_table, spread

STUB = """
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
                argv=("/bin/sh", "-c", STUB, "sh", str(run.path), str(node)),
                env={"PATH": os.environ["PATH"], "FMFSD_ATTEMPT": ATTEMPT, "IF": INTERFACE},
                cwd=str(run.path),
                host=f"host-{node}",
                agent=(*AGENT_COMMAND, "--deadline", "60"),
            )
            for node in range(nodes)
        ),
    )


def measure_launch(folder: Path, nodes: int) -> dict[str, float]:
    """Return the seconds from the coordinator's start until all nodes' processes run, the seconds from a stop request
    until all have exited, and the peak RSS of this process."""
    assert Execution is not None  # imported so that the memory is that of a launch
    run, requests, started_at = RunDir(folder), StopRequests(), list[float]()
    run.create()

    def request_stop_once_all_run() -> None:
        while sum(log.stat().st_size > 0 for log in run.logs.glob("node-*/starter.log")) < nodes:
            time.sleep(0.005)
        started_at.append(time.perf_counter())
        requests.request_stop()

    watcher = threading.Thread(target=request_stop_once_all_run, daemon=True)
    watcher.start()
    start = time.perf_counter()
    attempt = run_attempt(plan(run, nodes), run, grace_s=60, requests=requests, on_poll=lambda: None)
    end = time.perf_counter()
    assert attempt.state == "stopped", attempt
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"start_s": started_at[0] - start, "stop_s": end - started_at[0], "peak_mib": peak}


def measure_in_subprocess(nodes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.agents", "--one", str(nodes), folder]
        return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_launch(Path(options.one[1]) / "run", int(options.one[0]))))
        return
    rows = []
    for nodes in map(int, options.nodes.split(",")):
        rounds = [measure_in_subprocess(nodes) for _ in range(options.rounds)]
        start, stop = ([each[name] for each in rounds] for name in ("start_s", "stop_s"))
        ms_per_node = f"{1000 * statistics.median(start) / nodes:.0f}"
        peak = f"{max(each['peak_mib'] for each in rounds):.0f}"
        rows.append([nodes, spread(start, 2), ms_per_node, spread(stop, 2), peak])
    print_table(["nodes", "start, s", "start, ms per node", "stop, s", "launcher, peak MiB"], rows)


if __name__ == "__main__":
    main()
