"""Probe of an existing Ray cluster, by a short process that imports Ray.

`python -m launcher.tune.ray.cluster_resources ADDRESS FILE` prints JSON: the resources and software of each machine,
and whether it sees FILE.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from tempfile import NamedTemporaryFile
from typing import Any

from fmfsd.errors import CheckError, Problem
from fmfsd.own_launcher import COMMAND
from launcher.agent.available_resources import Resources
from launcher.agent.describe_machine import probe_machine
from launcher.run_dir.sweep_dir import SweepDir
from launcher.transport.local_commands import run_captured
from launcher.tune.ray.ray_environment import ENVIRONMENT
from launcher.tune.ray.ray_worker_node import is_listening

PROBE_TIMEOUT_S = 120.0
NODE_TIMEOUT_S = 60.0


def probe_machines(address: str, sweep: SweepDir) -> list[Resources]:
    """Return the resources of each machine of the cluster at `address`.

    Raise CheckError if the cluster can not be reached, or if a machine has other code or does not see the sweep folder.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal() and not is_listening(host, int(port)):
        raise CheckError([Problem(f"--ray-address {address}", "no answer: check that Ray runs there, and the address")])
    folder = next(parent for parent in sweep.path.parents if parent.is_dir())
    with NamedTemporaryFile(dir=folder, prefix=".fmfsd-seen-") as marker:
        argv = (*COMMAND, "launcher.tune.ray.cluster_resources", address, marker.name)
        code, output, errors = run_captured(argv, timeout_s=PROBE_TIMEOUT_S, extra_env=ENVIRONMENT)
    try:
        reports = json.loads(output)
    except ValueError:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        raise CheckError([Problem(f"--ray-address {address}", f"can not be reached: {last}")]) from None
    source = probe_machine({}, {})["source"]
    if problems := [problem for report in reports if (problem := _problem(report, source))]:
        raise CheckError(problems)
    return [Resources(report["cores"], tuple(report["gpus"]), report["memory"]) for report in reports]


def _problem(report: Mapping[str, Any], source: str) -> Problem | None:
    name = f"Ray's machine {report['address']}"
    if report["trouble"]:
        return Problem(name, report["trouble"])
    if report["source"] != source:
        return Problem(name, "has other code of fmfsd than this machine: install the same version there")
    if not report["marker"]:
        return Problem(
            name, "does not see the sweep folder: choose a --sweep-dir on a file system that all machines share"
        )
    return None


def main(address: str, marker: str) -> None:
    """Probe every machine by a Ray task there, and print the reports."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from launcher.tune.ray.ray_init import existing_ray, parse_node_resources

    with existing_ray(address):
        probe = ray.remote(num_cpus=0)(probe_machine)
        alive = [node for node in ray.nodes() if node["Alive"]]
        results = [
            probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                {"marker": marker}, {}
            )
            for node in alive
        ]
        reports = []
        for node, result in zip(alive, results, strict=True):
            report = {**asdict(parse_node_resources(node)), "address": node["NodeManagerAddress"], "trouble": ""}
            try:
                probed = ray.get(result, timeout=NODE_TIMEOUT_S)
                report |= {name: probed[name] for name in ("source", "marker")}
            except (ray.exceptions.RayError, ImportError) as error:
                report["trouble"] = f"can not run trials: {str(error).strip().splitlines()[-1]}"
            reports.append(report)
    print(json.dumps(reports))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except CheckError as error:
        raise SystemExit(str(error)) from error
