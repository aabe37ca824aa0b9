"""A driver of trials: `python -m tests.helpers.ray_driver FILE` carries out the orders in FILE by Ray Tune.

It writes FILE.out: each trial's last result, and what Ray then had left of its cores and agents.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from ray.cluster_utils import Cluster

from launcher.tune.order import TrialOrder
from launcher.tune.trial import Trial, placement

CORES = 4
QUIET = {"include_dashboard": False}
SETTLE_S = 10.0


def main(file: Path) -> None:
    asked = json.loads(file.read_text())
    cluster = start(asked["machines"])
    try:
        found = fit(asked, file.with_suffix(".ray"))
        file.with_suffix(".out").write_text(json.dumps({"results": found, "left": left()}))
    finally:
        ray.shutdown()
        if cluster is not None:
            cluster.shutdown()


def start(machines: int) -> Any:
    """One machine by itself, or several of one core each, all of them here."""
    if machines == 1:
        ray.init(address="local", num_cpus=CORES, log_to_driver=False, **QUIET)
        return None
    (Path(tempfile.gettempdir()) / "ray").mkdir()  # where it says to all of this user that it is there
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **QUIET})
    for _ in range(machines - 1):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    return cluster


def fit(asked: dict[str, Any], storage: Path) -> list[dict[str, Any]]:
    """Of each trial the last result; of one that is to stop early no more than its first."""

    def resources(config: dict[str, Any]) -> Any:
        return placement(TrialOrder.from_json(json.loads(config["order"])).launch, 1, 0)

    tuner = tune.Tuner(
        tune.with_resources(Trial, resources),
        param_space={"order": tune.grid_search([json.dumps(order) for order in asked["orders"]])},
        tune_config=tune.TuneConfig(reuse_actors=asked["reuse"]),
        run_config=tune.RunConfig(
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=asked["max_failures"]),
            stop=lambda _trial, result: json.loads(result["config"]["order"])["name"] in asked["stop_early"],
        ),
    )
    return [{**dict(result.metrics or {}), "error": str(result.error or "")} for result in tuner.fit()]


def left() -> dict[str, Any]:
    """Once nothing changes any more: cores that are free, processes of agents, their folders."""
    end = time.monotonic() + SETTLE_S
    while (found := _left())["agents"] or found["scratch"] or found["cores"] < ray.cluster_resources()["CPU"]:
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return found


def _left() -> dict[str, Any]:
    below, scratch = psutil.Process().children(recursive=True), Path(tempfile.gettempdir()).glob("fmfsd-*")
    agents = [process for process in below if "launcher.agent" in _words(process)]
    return {"cores": ray.available_resources().get("CPU", 0), "agents": len(agents), "scratch": len(list(scratch))}


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]))
