"""Resources of a trial: how many trials run concurrently, and the cores and GPUs of each node of a trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fmfsd.errors import CheckError, Problem
from launcher.agent.available_resources import Resources
from launcher.config.byte_sizes import format_size
from launcher.config.launch_config import LaunchConfig, TuneOptions


@dataclass(frozen=True)
class TrialResources:
    """The `cores` and `gpus` of each node of a trial, its `device`, and the number of `concurrent` trials."""

    device: Literal["cuda", "cpu"]
    cores: int
    gpus: int
    concurrent: int

    def __str__(self) -> str:
        resources = f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}" if self.gpus else f"{self.cores} cores"
        return f"{self.concurrent} at a time, {resources} for each node of a trial"


def fit_trials(
    machines: Sequence[Resources], launch: LaunchConfig, options: TuneOptions, *, worker_bytes: int = 0
) -> TrialResources:
    """Fit as many trials as requested, or as possible, on `machines`; they share all cores.

    `worker_bytes`: minimum memory of a worker; 0 if unknown. Raise CheckError if not even one trial fits, or fewer than
    requested.
    """
    device = choose_device(machines, launch)
    workers = launch.gpus or 1

    def fitting(cores: int) -> int:
        """Return how many trials fit with this number of cores for each node of a trial."""
        rooms = (_count_nodes(each, cores, workers, device, worker_bytes) for each in machines)
        return sum(rooms) // launch.nodes

    most = fitting(workers)
    if most < (options.concurrent or 1):
        raise CheckError([_does_not_fit(machines, launch, options, device, most, worker_bytes)])
    concurrent = min(options.concurrent or most, options.trials)
    cores = next(cores for cores in range(max(each.cores for each in machines), 0, -1) if fitting(cores) >= concurrent)
    return TrialResources(device, cores, workers if device == "cuda" else 0, concurrent)


def choose_device(machines: Sequence[Resources], launch: LaunchConfig) -> Literal["cuda", "cpu"]:
    """Return the device of trials: GPUs if any machine has one, unless the launch config names a device."""
    if launch.device != "auto":
        return launch.device
    return "cuda" if any(each.gpus for each in machines) else "cpu"


def _count_nodes(machine: Resources, cores: int, workers: int, device: str, worker_bytes: int) -> int:
    """Return how many nodes of trials fit on a machine."""
    limits = [machine.cores // cores]
    if device == "cuda":
        fits = not machine.gpu_memory or worker_bytes <= machine.gpu_memory
        limits.append(len(machine.gpus) // workers if fits else 0)
    elif worker_bytes and machine.memory:
        limits.append(machine.memory // (worker_bytes * workers))
    return min(limits)


def _does_not_fit(
    machines: Sequence[Resources], launch: LaunchConfig, options: TuneOptions, device: str, most: int, worker_bytes: int
) -> Problem:
    workers = launch.gpus or 1
    needs = f"{workers} GPUs" if device == "cuda" else f"{workers} cores"
    memory = f" and at least {format_size(worker_bytes * workers)} of {'their ' if device == 'cuda' else ''}memory"
    offers = "; ".join(dict.fromkeys(map(_offer, machines)))
    request = f"a trial requests {launch.nodes} x {needs}{memory if worker_bytes else ''}"
    if most and options.concurrent:
        return Problem(
            "--concurrent", f"{options.concurrent} at a time, but only {most} fit: {request}, available: {offers}"
        )
    return Problem("--nodes, --gpus", f"{request}; available: {offers}: request fewer workers per trial")


def _offer(machine: Resources) -> str:
    known = machine.gpu_memory or machine.memory
    memory = f", {format_size(known)}{' each' if machine.gpu_memory else ''}" if known else ""
    return f"a machine with {machine.cores} cores, {len(machine.gpus)} GPUs{memory}"
