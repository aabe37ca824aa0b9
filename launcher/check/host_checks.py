"""Checks that all hosts of a launch respond, have the same software, and see the same files."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fmfsd.config import RunConfig
from fmfsd.config.names import TIMM
from fmfsd.data.shards.index import prepared_set_folder
from fmfsd.errors import Problem
from fmfsd.system.atomic_files import sha256
from launcher.agent.describe_machine import PACKAGES
from launcher.check.machine_checks import NO_GPU_REMEDY
from launcher.config.launch_config import LaunchConfig
from launcher.resources.host_probe import HostProbe

MAX_CLOCK_DIFFERENCE_S = 5.0
"""Clocks that differ by more make logs hard to read; the program itself never compares them."""

Answer = Mapping[str, Any]


def check_hosts(launch: LaunchConfig, host_probe: HostProbe) -> Iterator[Problem]:
    """Check everything that does not depend on the config."""
    for host, failure in host_probe.failures.items():
        yield Problem(host, failure)
    for host, answer in host_probe.answers.items():
        yield from _check_files(host, answer, host_probe.query)
        if launch.interface is not None and launch.interface not in answer["interfaces"]:
            available = ", ".join(answer["interfaces"]) or "none"
            yield Problem(host, f"has no interface {launch.interface} with an IPv4 address; there are {available}")
    for host, imports in host_probe.imports.items():
        for package, (here, there) in imports.items():
            message = (
                f"workers would import {package} from {there or 'nowhere'}, but this check imports {here or 'none'}"
            )
            yield Problem(host, f"{message}: start the launch without Python's options -E, -I and -s, or change --env")
    for name, value_of in _COMPARED.items():
        yield from _check_same(name, value_of, host_probe)
    for host, answer in _answers_of_same_version(host_probe).items():
        if launch.nodes > 1 and not _external_addresses(answer):
            yield Problem(
                host, "has no IPv4 address except loopback's, and hosts need one to connect: configure IPv4 there"
            )
        if launch.device != "cpu" and answer["gpu_trouble"]:
            yield Problem(host, f"{answer['gpu_trouble']}: {NO_GPU_REMEDY}")
    hosts_without_gpu = [
        host for host, answer in host_probe.answers.items() if not (answer["gpus"] or answer.get("gpu_trouble"))
    ]
    if launch.device == "auto" and hosts_without_gpu and len(hosts_without_gpu) < len(host_probe.answers):
        message = (
            f"no GPU is visible on {', '.join(hosts_without_gpu)}, but other hosts have some: see `fmfsd-launch doctor`"
        )
        yield Problem(
            "--device auto", f"{message}; leave {'it' if len(hosts_without_gpu) == 1 else 'them'} out, or --device cpu"
        )


def check_dataset_on_hosts(config: RunConfig, host_probe: HostProbe) -> Iterator[Problem]:
    """Check that all hosts see the data set of this machine; a missing set is prepared first."""
    index = prepared_set_folder(config.data) / "index.json"
    here = sha256(index) if os.access(index, os.R_OK) else None
    for host, answer in host_probe.answers.items():
        there = answer.get("index")
        if here is None:
            return
        if there is None:
            yield Problem(
                host, f"can't read {index}: put data.root where all hosts see it, or prepare the set there too"
            )
        elif there != here:
            sums = f"SHA-256 {there[:16]}... there, {here[:16]}... here"
            yield Problem(
                host, f"has another data set at {index.parent} ({sums}): prepare it again from the same files"
            )


def check_timm_versions(config: RunConfig, host_probe: HostProbe) -> Iterator[Problem]:
    """Check that all hosts have the same timm if the backbone comes from it."""
    if config.model.backbone.startswith(TIMM):
        yield from _check_same("timm", lambda answer: answer["versions"].get("timm"), host_probe)


def check_deepspeed_versions(host_probe: HostProbe) -> Iterator[Problem]:
    yield from _check_same("deepspeed", lambda answer: answer["versions"].get("deepspeed"), host_probe)


def warn_about_hosts(host_probe: HostProbe) -> Iterator[str]:
    for host, answer in host_probe.answers.items():
        if abs(ahead_s := answer["clock_s"]) > MAX_CLOCK_DIFFERENCE_S:
            way = "ahead of" if ahead_s > 0 else "behind"
            yield f"{host}: its clock is {abs(ahead_s):.0f} s {way} ours, so times in its logs differ: let NTP set both"
    for host, answer in _answers_of_same_version(host_probe).items():
        if answer["amd_gpus"] and not answer["gpus"]:
            yield f"{host}: it has AMD GPUs, which are not supported"
    counts = {host: len(answer["gpus"]) for host, answer in host_probe.answers.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{host} {count}" for host, count in counts.items())
        yield f"hosts have different numbers of GPUs ({each}): each gets as many workers as the one with the fewest"


def _check_files(host: str, answer: Answer, query: Mapping[str, Any]) -> Iterator[Problem]:
    if not answer.get("cwd", True):
        yield Problem(
            host,
            f"the working directory {query['cwd']} is missing: start the launch in a folder that exists on all hosts",
        )
    if query.get("wrapped"):
        yield from _check_container(host, answer, query)
    elif not answer.get("marker", True):
        problem = f"does not see a file that was just written in {query['parent']}"
        yield Problem(
            host, f"{problem}: several machines have to share the run's file system: choose another --run-dir"
        )
    elif not answer.get("parent", True):
        yield Problem(
            host, f"can't write in {query['parent']}, the parent of the run directory: choose another --run-dir"
        )


def _answers_of_same_version(host_probe: HostProbe) -> Mapping[str, Answer]:
    """Return the answers of hosts with our source code.

    Hosts with other code are refused, and their answers may have another form.
    """
    source = host_probe.here.get("source")
    return {host: answer for host, answer in host_probe.answers.items() if source in (None, answer["source"])}


def _external_addresses(answer: Answer) -> list[str]:
    addresses = [address for interface_addresses in answer["interfaces"].values() for address in interface_addresses]
    return [address for address in addresses if not address.startswith("127.")]


def _check_container(host: str, answer: Answer, query: Mapping[str, Any]) -> Iterator[Problem]:
    """Check what an agent inside a container lacks."""
    if not answer.get("marker", True):
        yield Problem(
            host, f"does not see {query['parent']}, the parent of the run directory: mount it into the container"
        )
    elif not answer.get("parent", True):
        yield Problem(
            host, f"can't write in {query['parent']}, the parent of the run directory: mount it so that it can"
        )
    for package in ("torch", "torchvision", "numpy"):
        if answer["versions"].get(package) is None:
            yield Problem(host, f"{package} is not installed inside: install fmfsd's dependencies in the image")


def _check_same(name: str, value_of: Callable[[Answer], str | None], host_probe: HostProbe) -> Iterator[Problem]:
    """Yield a problem if a value differs between hosts and this machine, which writes the run's config."""
    by_value: dict[str | None, list[str]] = {}
    for host, answer in {f"here ({socket.gethostname()})": host_probe.here, **host_probe.answers}.items():
        if answer:
            by_value.setdefault(value_of(answer), []).append(host)
    if len(by_value) > 1:
        details = "; ".join(f"{value or 'none'} on {', '.join(hosts)}" for value, hosts in by_value.items())
        yield Problem(
            name, f"not the same everywhere: {details}: use one environment that all hosts see, or equal ones"
        )


_COMPARED: dict[str, Callable[[Answer], str | None]] = {
    "Python": lambda answer: ".".join(answer["python"].split(".")[:2]),
    **{name: (lambda answer, name=name: answer["versions"].get(name)) for name in PACKAGES},  # type: ignore[misc]
    "code of fmfsd": lambda answer: f"sum {answer['source'][:12]}",
}
