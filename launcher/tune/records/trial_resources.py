"""How many trials at a time, and what each of their nodes gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fmfsd.errors import CheckError, Problem
from launcher.agent.resources import Resources
from launcher.config.byte_sizes import size
from launcher.config.launch_config import LaunchConfig, TuneOptions


@dataclass(frozen=True)
class Shape:
    """`cores` and `gpus` of each node of a trial, on `device`; `concurrent` such trials fit beside one another."""

    device: Literal["cuda", "cpu"]
    cores: int
    gpus: int
    concurrent: int

    def __str__(self) -> str:
        what = f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}" if self.gpus else f"{self.cores} cores"
        return f"{self.concurrent} at a time, {what} for each node of a trial"


def shape_of(
    machines: Sequence[Resources], launch: LaunchConfig, options: TuneOptions, *, worker_bytes: int = 0
) -> Shape:
    """For as many trials as fit, or as were asked for; they share out all cores. CheckError if not even one fits.

    `worker_bytes`: what a worker holds at least; 0: not known.
    """
    device = device_of(machines, launch)
    workers = launch.gpus or 1

    def fitting(cores: int) -> int:
        """With so many cores for a node of a trial."""
        rooms = (_room(each, cores, workers, device, worker_bytes) for each in machines)
        return sum(rooms) // launch.nodes

    most = fitting(workers)
    if most < (options.concurrent or 1):
        raise CheckError([_too_much(machines, launch, options, device, most, worker_bytes)])
    concurrent = min(options.concurrent or most, options.trials)
    cores = next(cores for cores in range(max(each.cores for each in machines), 0, -1) if fitting(cores) >= concurrent)
    return Shape(device, cores, workers if device == "cuda" else 0, concurrent)


def device_of(machines: Sequence[Resources], launch: LaunchConfig) -> Literal["cuda", "cpu"]:
    """Return what trials compute on: GPUs if any of the machines has some, unless the launch says otherwise."""
    if launch.device != "auto":
        return launch.device
    return "cuda" if any(each.gpus for each in machines) else "cpu"


def _room(machine: Resources, cores: int, workers: int, device: str, worker_bytes: int) -> int:
    """Nodes of trials that a machine takes."""
    rooms = [machine.cores // cores]
    if device == "cuda":
        fits = not machine.gpu_memory or worker_bytes <= machine.gpu_memory
        rooms.append(len(machine.gpus) // workers if fits else 0)
    elif worker_bytes and machine.memory:
        rooms.append(machine.memory // (worker_bytes * workers))
    return min(rooms)


def _too_much(
    machines: Sequence[Resources], launch: LaunchConfig, options: TuneOptions, device: str, most: int, worker_bytes: int
) -> Problem:
    workers = launch.gpus or 1
    needs = f"{workers} GPUs" if device == "cuda" else f"{workers} cores"
    memory = f" and at least {size(worker_bytes * workers)} of {'their ' if device == 'cuda' else ''}memory"
    offers = "; ".join(dict.fromkeys(map(_offer, machines)))
    asked = f"a trial asks for {launch.nodes} x {needs}{memory if worker_bytes else ''}"
    if most and options.concurrent:
        return Problem(
            "--concurrent", f"{options.concurrent} at a time, of which {most} fit: {asked}, there is {offers}"
        )
    return Problem("--nodes, --gpus", f"{asked}; there is {offers}: ask for fewer workers a trial")


def _offer(machine: Resources) -> str:
    known = machine.gpu_memory or machine.memory
    memory = f", {size(known)}{' each' if machine.gpu_memory else ''}" if known else ""
    return f"a machine with {machine.cores} cores, {len(machine.gpus)} GPUs{memory}"
