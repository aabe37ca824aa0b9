"""Whether all hosts of a launch answer, have the same software, and see the same files."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fmfsd.config import RunConfig
from fmfsd.config.names import TIMM
from fmfsd.data.shards.index import set_folder
from fmfsd.errors import Problem
from fmfsd.system.atomic_files import sha256
from launcher.agent.probe import PACKAGES
from launcher.check.machine_checks import NO_GPU_REMEDY
from launcher.config.launch_config import LaunchConfig
from launcher.resources.host_probe import Survey

CLOCK_S = 5.0
"""Clocks that differ by more make logs hard to read; nothing of ours compares them."""

Answer = Mapping[str, Any]


def problems(launch: LaunchConfig, survey: Survey) -> Iterator[Problem]:
    """Whatever is trained."""
    for host, words in survey.trouble.items():
        yield Problem(host, words)
    for host, answer in survey.seen.items():
        yield from _unseen(host, answer, survey.asked)
        if launch.interface is not None and launch.interface not in answer["interfaces"]:
            found = ", ".join(answer["interfaces"]) or "none"
            yield Problem(host, f"has no interface {launch.interface} with an IPv4 address; there are {found}")
    for host, imports in survey.imports.items():
        for package, (here, there) in imports.items():
            message = (
                f"workers would import {package} from {there or 'nowhere'}, and the check imports {here or 'none'}"
            )
            yield Problem(host, f"{message}: start the launch without Python's options -E, -I and -s, or change --env")
    for what, value_of in _SAME.items():
        yield from _unlike(what, value_of, survey)
    for host, answer in _of_this_version(survey).items():
        if launch.nodes > 1 and not _outside_loopback(answer):
            yield Problem(host, "has no IPv4 address except loopback's, and hosts meet at one: configure IPv4 there")
        if launch.device != "cpu" and answer["gpu_trouble"]:
            yield Problem(host, f"{answer['gpu_trouble']}: {NO_GPU_REMEDY}")
    without = [host for host, answer in survey.seen.items() if not (answer["gpus"] or answer.get("gpu_trouble"))]
    if launch.device == "auto" and without and len(without) < len(survey.seen):
        message = f"no GPU is visible on {', '.join(without)}, and some are on the others: see `fmfsd-launch doctor`"
        yield Problem("--device auto", f"{message}; leave {'it' if len(without) == 1 else 'them'} out, or --device cpu")


def other_data(config: RunConfig, survey: Survey) -> Iterator[Problem]:
    """On hosts that do not see the set that is here; one that is not here is prepared first."""
    index = set_folder(config.data) / "index.json"
    here = sha256(index) if os.access(index, os.R_OK) else None
    for host, answer in survey.seen.items():
        there = answer.get("index")
        if here is None:
            return
        if there is None:
            yield Problem(
                host, f"can't read {index}: put data.root where all hosts see it, or prepare the set there too"
            )
        elif there != here:
            sums = f"SHA-256 {there[:16]}... there, {here[:16]}... here"
            yield Problem(host, f"has another data set at {index.parent} ({sums}): prepare it anew from the same files")


def other_timm(config: RunConfig, survey: Survey) -> Iterator[Problem]:
    """Where the backbone is of it."""
    if config.model.backbone.startswith(TIMM):
        yield from _unlike("timm", lambda answer: answer["versions"].get("timm"), survey)


def other_deepspeed(survey: Survey) -> Iterator[Problem]:
    yield from _unlike("deepspeed", lambda answer: answer["versions"].get("deepspeed"), survey)


def warnings(survey: Survey) -> Iterator[str]:
    for host, answer in survey.seen.items():
        if abs(ahead_s := answer["clock_s"]) > CLOCK_S:
            way = "ahead of" if ahead_s > 0 else "behind"
            yield f"{host}: its clock is {abs(ahead_s):.0f} s {way} ours, so times in its logs differ: let NTP set both"
    for host, answer in _of_this_version(survey).items():
        if answer["amd_gpus"] and not answer["gpus"]:
            yield f"{host}: it has AMD GPUs, which are not supported"
    counts = {host: len(answer["gpus"]) for host, answer in survey.seen.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{host} {count}" for host, count in counts.items())
        yield f"hosts have different numbers of GPUs ({each}): each gets as many workers as the one with the fewest"


def _unseen(host: str, answer: Answer, asked: Mapping[str, Any]) -> Iterator[Problem]:
    if not answer.get("cwd", True):
        yield Problem(host, f"there is no {asked['cwd']}, which this was started in: start it in a folder of all hosts")
    if asked.get("wrapped"):
        yield from _missing_inside(host, answer, asked)
    elif not answer.get("marker", True):
        where = f"does not see a file that was just written in {asked['parent']}"
        yield Problem(host, f"{where}: several machines have to share the run's file system: choose another --run-dir")
    elif not answer.get("parent", True):
        yield Problem(host, f"can't write in {asked['parent']}, where the run is to be: choose another --run-dir")


def _of_this_version(survey: Survey) -> Mapping[str, Answer]:
    """Answers of hosts with our own code: those of others, which are refused, may have another form."""
    source = survey.here.get("source")
    return {host: answer for host, answer in survey.seen.items() if source in (None, answer["source"])}


def _outside_loopback(answer: Answer) -> list[str]:
    found = [address for own in answer["interfaces"].values() for address in own]
    return [address for address in found if not address.startswith("127.")]


def _missing_inside(host: str, answer: Answer, asked: Mapping[str, Any]) -> Iterator[Problem]:
    """What a container lacks."""
    if not answer.get("marker", True):
        yield Problem(host, f"does not see {asked['parent']}, where the run is to be: mount it into the container")
    elif not answer.get("parent", True):
        yield Problem(host, f"can't write in {asked['parent']}, where the run is to be: mount it so that it can")
    for package in ("torch", "torchvision", "numpy"):
        if answer["versions"].get(package) is None:
            yield Problem(host, f"{package} is not installed inside: install fmfsd's dependencies in the image")


def _unlike(what: str, value_of: Callable[[Answer], str | None], survey: Survey) -> Iterator[Problem]:
    """Not the same on all hosts and here, where the run's config is written."""
    by_value: dict[str | None, list[str]] = {}
    for host, answer in {f"here ({socket.gethostname()})": survey.here, **survey.seen}.items():
        if answer:
            by_value.setdefault(value_of(answer), []).append(host)
    if len(by_value) > 1:
        found = "; ".join(f"{value or 'none'} on {', '.join(hosts)}" for value, hosts in by_value.items())
        yield Problem(what, f"not the same everywhere: {found}: use one environment that all hosts see, or equal ones")


_SAME: dict[str, Callable[[Answer], str | None]] = {
    "Python": lambda answer: ".".join(answer["python"].split(".")[:2]),
    **{name: (lambda answer, name=name: answer["versions"].get(name)) for name in PACKAGES},  # type: ignore[misc]
    "code of fmfsd": lambda answer: f"sum {answer['source'][:12]}",
}
