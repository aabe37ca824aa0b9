"""Run trials with Ray Tune on a private Ray cluster of two nodes: `python -m tests.helpers.ray_driver READY`.

Creates the file READY once Ray runs. Each line of stdin names a FILE with trial specs, which are run by Ray Tune. The
results are written to FILE.out: the last result of each trial, and the free cores, agents and scratch folders that Ray
has after the trials. Exits at the end of stdin.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from ray.cluster_utils import Cluster

from fmfsd.system.atomic_files import write_json
from launcher.tune.driver.trial_actor import TrialActor, build_placement_group
from launcher.tune.sweep.trial_spec import TrialSpec

CORES = (4, 3)
"""Cores of each Ray node: only the first and the second together have room for two launch nodes of three cores."""
QUIET = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True, "object_store_memory": 100 << 20}
SETTLE_S = 10.0


def main(ready: Path) -> None:
    with two_node_cluster():
        ready.touch()
        for line in sys.stdin:
            file = Path(line.strip())
            results = run_trials(json.loads(file.read_text()), file.with_suffix(".ray"))
            write_json(file.with_suffix(".out"), {"results": results, "left": wait_for_cleanup()})


@contextmanager
def two_node_cluster() -> Iterator[None]:
    (
        Path(tempfile.gettempdir()) / "ray"
    ).mkdir()  # Ray would publish its address to all processes of this user in /tmp/ray
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CORES[0], **QUIET})
    try:
        cluster.add_node(num_cpus=CORES[1], **QUIET)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def run_trials(request: dict[str, Any], storage: Path) -> list[dict[str, Any]]:
    """Return the last result of each trial; trials in `stop_early` stop after their first result."""

    def resources(config: dict[str, Any]) -> Any:
        spec = TrialSpec.from_dict(json.loads(config["order"]))
        return build_placement_group(spec.launch, spec.cores, 0)

    tuner = tune.Tuner(
        tune.with_resources(TrialActor, resources),
        param_space={"order": tune.grid_search([json.dumps(spec) for spec in request["orders"]])},
        tune_config=tune.TuneConfig(reuse_actors=request["reuse"]),
        run_config=tune.RunConfig(
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=request["max_failures"]),
            stop=lambda _trial, result: json.loads(result["config"]["order"])["name"] in request["stop_early"],
        ),
    )
    return [{**dict(result.metrics or {}), "error": str(result.error or "")} for result in tuner.fit()]


def wait_for_cleanup() -> dict[str, Any]:
    """Wait up to SETTLE_S until all cores are free and all agents have ended; return what is left."""
    deadline = time.monotonic() + SETTLE_S
    while (left := _count_left())["agents"] or left["scratch"] or left["cores"] < ray.cluster_resources()["CPU"]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _count_left() -> dict[str, Any]:
    """Return the free cores, and the numbers of agent processes and of their scratch folders."""
    descendants, scratch = psutil.Process().children(recursive=True), Path(tempfile.gettempdir()).glob("fmfsd-*")
    agents = [process for process in descendants if "launcher.agent" in _command_line(process)]
    return {"cores": ray.available_resources().get("CPU", 0), "agents": len(agents), "scratch": len(list(scratch))}


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]))
