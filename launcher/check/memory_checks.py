"""Whether a worker's memory is enough, and its batch large enough to be worth a GPU."""

import math
from collections.abc import Iterator

from fmfsd.config import RunConfig
from fmfsd.errors import Problem
from launcher.check import image_storage
from launcher.check.data_checks import divisors
from launcher.check.machine_checks import checkpoint_bytes
from launcher.config.byte_sizes import size
from launcher.config.launch_config import LaunchConfig
from launcher.resources.cost_probe import Costs
from launcher.resources.site import Site

FEWEST_IMAGES = 32
"""Of a micro-batch, for each GPU."""
COPIES_OF_A_CHECKPOINT = 2
"""Rank 0 holds a copy of the tensors, and then the bytes of the files, while it writes them."""
_SHARED = ("activations", "data")
"""Parts of the memory that more workers share."""


def refused(costs: Costs) -> Iterator[Problem]:
    """What only the network itself could tell of the config."""
    if costs.refused:
        yield Problem("", costs.refused)


def too_little(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[Problem]:
    workers = site.workers(launch)
    need, have = _needed(launch, site, costs), site.memory_a_worker(launch, workers)
    if have and need > have:
        there = "its GPU has {}" if site.placement(launch)[0] == "cuda" else "its machine has {} for it"
        found = f"a worker needs at least {size(need)}, {size(costs.memory['activations'])} of it for activations"
        ways = (_fewer_or_more, _from_files, _smaller)
        fitting = " or ".join(way for find in ways for way in find(config, launch, site, costs))
        advice = f"by these figures {fitting} would fit" if fitting else "only a smaller model fits"
        yield Problem("memory", f"{found}; {there.format(size(have))}: {advice}")


def no_room_to_offload(launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[Problem]:
    """Of the machine beside its GPUs."""
    here = site.placement(launch)[1] * (launch.nodes if site.is_here else 1)
    need, have = here * costs.memory.get("offloaded", 0), site.resources.memory
    if site.placement(launch)[0] == "cuda" and have and need > have:
        found = f"the optimizers of {here} workers need at least {size(need)} of their machine, which has {size(have)}"
        yield Problem("engine.offload", f"{found}: set it to false, or take more nodes with fewer GPUs each")


def too_little_beside_gpus(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[Problem]:
    """Of the machine's memory, for what its workers hold there though they compute on GPUs."""
    if site.placement(launch)[0] != "cuda" or not site.resources.memory or any(no_room_to_offload(launch, site, costs)):
        return
    here = site.placement(launch)[1] * (launch.nodes if site.is_here else 1)
    in_files = image_storage.stay_in_files(config, launch, site)
    parts = {
        "to read images": here * image_storage.part_of(config, site.workers(launch)).staged_bytes(in_files=in_files),
        "for the copies of a checkpoint": COPIES_OF_A_CHECKPOINT * checkpoint_bytes(config, costs),
        "for optimizers": here * costs.memory.get("offloaded", 0),
    }
    if (need := sum(parts.values())) > site.resources.memory:
        each = ", ".join(f"{size(part)} {what}" for what, part in parts.items() if part)
        found = f"{here} workers with GPUs also need at least {size(need)} of their machine's memory ({each})"
        yield Problem(
            "memory", f"{found}, which has {size(site.resources.memory)}: take more nodes with fewer GPUs each"
        )


def _needed(launch: LaunchConfig, site: Site, costs: Costs) -> int:
    """On a worker's device; on a CPU that is where offloaded parts are too."""
    offloaded = costs.memory.get("offloaded", 0) if site.placement(launch)[0] == "cpu" else 0
    return costs.memory.get("total", 0) + offloaded


def _fewer_or_more(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[str]:
    """The nearest number of workers that would fit."""
    now = site.workers(launch)
    shared = sum(costs.memory[part] for part in _SHARED)
    fits = [
        count
        for count in divisors(config.data.shards)
        if costs.memory["total"] - shared + shared * now / count <= site.memory_a_worker(launch, count)
    ]
    if fits:
        nearest = min(fits, key=lambda count: abs(count - now))
        yield f"{nearest} worker{'' if nearest == 1 else 's'}"


def _from_files(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[str]:
    """Images that are not in memory, if that would be enough."""
    workers = site.workers(launch)
    saved = costs.memory["data"] - image_storage.part_of(config, workers).read_bytes
    if saved > 0 and _needed(launch, site, costs) - saved <= site.memory_a_worker(launch, workers):
        yield "data.images_in files"


def _smaller(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[str]:
    """The largest micro-batch that would fit."""
    have, activations = site.memory_a_worker(launch, site.workers(launch)), costs.memory["activations"]
    sizes = range(config.data.shards, config.micro_batch, config.data.shards)
    fits = [
        images
        for images in sizes
        if config.train.batch % images == 0
        and costs.memory["total"] - activations * (1 - images / config.micro_batch) <= have
    ]
    if fits:
        yield f"train.micro_batch {fits[-1]} (which is another run)"


def too_small(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[str]:
    """Batches that make a GPU wait for its own launches, and for the others."""
    workers, shards, micro = site.workers(launch), config.data.shards, config.micro_batch
    if site.placement(launch)[0] != "cuda" or micro // workers >= FEWEST_IMAGES:
        return
    key = "train.batch" if micro == config.train.batch else "train.micro_batch"
    enough = [count for count in divisors(shards) if count * FEWEST_IMAGES <= micro]
    fewer = f"{enough[-1]} workers or " if enough else ""
    larger = math.ceil(workers * FEWEST_IMAGES / shards) * shards
    yield (
        f"{key} {micro} gives each of {workers} GPUs {micro // workers} images at a time, too few to be worth it: take "
        f"{fewer}{key} {larger} (which is another run)"
    )


def unknown(costs: Costs) -> Iterator[str]:
    if costs.unknown:
        yield f"shapes and memory could not be checked: {costs.unknown}"
