"""A driver of trials on a Ray of its own, of two machines: `python -m tests.helpers.ray_driver READY`.

It makes the file READY once Ray is there. Each line of its stdin is a FILE with orders, which it carries out by Ray
Tune. Then it writes FILE.out: each trial's last result, and what Ray then had left of its cores and agents. It ends
with its stdin.
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
from launcher.tune.driver.trial_actor import Trial, placement
from launcher.tune.sweep.trial_spec import TrialOrder

CORES = (4, 3)
"""Of each machine: no other one has room for two nodes of three cores."""
QUIET = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True, "object_store_memory": 100 << 20}
SETTLE_S = 10.0


def main(ready: Path) -> None:
    with two_machines():
        ready.touch()
        for line in sys.stdin:
            file = Path(line.strip())
            found = fit(json.loads(file.read_text()), file.with_suffix(".ray"))
            write_json(file.with_suffix(".out"), {"results": found, "left": left()})


@contextmanager
def two_machines() -> Iterator[None]:
    (Path(tempfile.gettempdir()) / "ray").mkdir()  # where it says to all of this user that it is there
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CORES[0], **QUIET})
    try:
        cluster.add_node(num_cpus=CORES[1], **QUIET)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def fit(asked: dict[str, Any], storage: Path) -> list[dict[str, Any]]:
    """Of each trial the last result; of one that is to stop early no more than its first."""

    def resources(config: dict[str, Any]) -> Any:
        order = TrialOrder.from_json(json.loads(config["order"]))
        return placement(order.launch, order.cores, 0)

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
