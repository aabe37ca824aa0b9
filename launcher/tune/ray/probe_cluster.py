"""What a Ray cluster that is there offers and sees, asked by a short process with Ray.

`python -m launcher.tune.ray.probe_cluster ADDRESS FILE` prints it as JSON; FILE is one that all of its machines
should see.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from tempfile import NamedTemporaryFile
from typing import Any

from fmfsd.errors import CheckError, Problem
from fmfsd.own_launcher import COMMAND
from launcher.agent.probe import look
from launcher.agent.resources import Resources
from launcher.run_dir.sweep_dir import SweepDir
from launcher.transport.local_commands import said_here
from launcher.tune.ray.environment import ENVIRONMENT
from launcher.tune.ray.ray_worker_node import answers

ANSWER_S = 120.0
NODE_S = 60.0


def machines_of(address: str, sweep: SweepDir) -> list[Resources]:
    """What each of its machines offers. CheckError if it can't be reached, or one has other code or no such folder."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and not answers(host, int(port)):
        raise CheckError(
            [Problem(f"--ray-address {address}", "nobody answers there: is it up, and the address right?")]
        )
    folder = next(parent for parent in sweep.path.parents if parent.is_dir())
    with NamedTemporaryFile(dir=folder, prefix=".fmfsd-seen-") as marker:
        argv = (*COMMAND, "launcher.tune.ray.probe_cluster", address, marker.name)
        code, output, errors = said_here(argv, deadline_s=ANSWER_S, more=ENVIRONMENT)
    try:
        told = json.loads(output)
    except ValueError:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        raise CheckError([Problem(f"--ray-address {address}", f"can't be reached: {last}")]) from None
    here = look({}, {})["source"]
    if problems := [problem for each in told if (problem := _problem(each, here))]:
        raise CheckError(problems)
    return [Resources(each["cores"], tuple(each["gpus"]), each["memory"]) for each in told]


def _problem(told: Mapping[str, Any], source: str) -> Problem | None:
    name = f"Ray's machine {told['address']}"
    if told["trouble"]:
        return Problem(name, told["trouble"])
    if told["source"] != source:
        return Problem(name, "has other code of fmfsd than this one: install the same there")
    if not told["marker"]:
        return Problem(name, "does not see the sweep's folder: choose a --sweep-dir on a file system that all share")
    return None


def main(address: str, marker: str) -> None:
    """Every machine is asked by a task of its own there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from launcher.tune.ray.cluster import existing_ray, machine

    with existing_ray(address):
        ask = ray.remote(num_cpus=0)(look)
        alive = [node for node in ray.nodes() if node["Alive"]]
        answers = [
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                {"marker": marker}, {}
            )
            for node in alive
        ]
        told = []
        for node, answer in zip(alive, answers, strict=True):
            found = {**asdict(machine(node)), "address": node["NodeManagerAddress"], "trouble": ""}
            try:
                seen = ray.get(answer, timeout=NODE_S)
                found |= {name: seen[name] for name in ("source", "marker")}
            except (ray.exceptions.RayError, ImportError) as error:
                found["trouble"] = f"can't carry trials out: {str(error).strip().splitlines()[-1]}"
            told.append(found)
    print(json.dumps(told))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except CheckError as error:
        raise SystemExit(str(error)) from error
