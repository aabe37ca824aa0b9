"""Checks that a worker's memory is sufficient, and that its batch is large enough to use a GPU efficiently."""

import math
from collections.abc import Iterator

from fmfsd.config import RunConfig
from fmfsd.errors import Problem
from launcher.check import image_storage
from launcher.check.data_checks import divisors
from launcher.check.machine_checks import checkpoint_bytes
from launcher.config.byte_sizes import format_size
from launcher.config.launch_config import LaunchConfig
from launcher.resources.config_cost import Costs
from launcher.resources.site import Site

MIN_IMAGES = 32
"""Minimum of images in a micro-batch per GPU."""
CHECKPOINT_COPIES = 2
"""While it writes a checkpoint, rank 0 holds a copy of the tensors, and then the bytes of the files."""
_DIVIDED_PARTS = ("activations", "data")
"""Parts of the memory that are divided among the workers."""


def check_probe(costs: Costs) -> Iterator[Problem]:
    """Check that the cost probe, which builds the network, accepted the config."""
    if costs.config_error:
        yield Problem("", costs.config_error)


def check_device_memory(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[Problem]:
    workers = site.count_workers(launch)
    required, available = _required_bytes(launch, site, costs), site.memory_per_worker(launch, workers)
    if available and required > available:
        where = "its GPU has {}" if site.placement(launch)[0] == "cuda" else "its machine has {} for it"
        activations = format_size(costs.memory["activations"])
        problem = f"a worker needs at least {format_size(required)}, {activations} of it for activations"
        suggestions = (_suggest_workers, _suggest_files, _suggest_micro_batch)
        fitting = " or ".join(
            suggestion for suggest in suggestions for suggestion in suggest(config, launch, site, costs)
        )
        advice = f"by these figures {fitting} would fit" if fitting else "only a smaller model fits"
        yield Problem("memory", f"{problem}; {where.format(format_size(available))}: {advice}")


def check_offload_memory(launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[Problem]:
    """Check that a machine with GPUs has the memory for offloaded optimizer state."""
    local_workers = site.placement(launch)[1] * (launch.nodes if site.is_here else 1)
    required, available = local_workers * costs.memory.get("offloaded", 0), site.resources.memory
    if site.placement(launch)[0] == "cuda" and available and required > available:
        needs = f"the optimizers of {local_workers} workers need at least {format_size(required)} of their machine"
        problem = f"{needs}, which has {format_size(available)}"
        yield Problem("engine.offload", f"{problem}: set it to false, or take more nodes with fewer GPUs each")


def check_host_memory(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[Problem]:
    """Check that a machine with GPUs has the memory that its workers need on the host."""
    if (
        site.placement(launch)[0] != "cuda"
        or not site.resources.memory
        or any(check_offload_memory(launch, site, costs))
    ):
        return
    local_workers = site.placement(launch)[1] * (launch.nodes if site.is_here else 1)
    in_files = image_storage.images_stay_in_files(config, launch, site)
    parts = {
        "to read images": local_workers
        * image_storage.worker_share(config, site.count_workers(launch)).staging_bytes(stream=in_files),
        "for the copies of a checkpoint": CHECKPOINT_COPIES * checkpoint_bytes(config, costs),
        "for optimizers": local_workers * costs.memory.get("offloaded", 0),
    }
    if (required := sum(parts.values())) > site.resources.memory:
        details = ", ".join(f"{format_size(part)} {purpose}" for purpose, part in parts.items() if part)
        needs = (
            f"{local_workers} workers with GPUs also need at least {format_size(required)} of their machine's memory"
        )
        problem = f"{needs} ({details})"
        yield Problem(
            "memory", f"{problem}, which has {format_size(site.resources.memory)}: take more nodes with fewer GPUs each"
        )


def _required_bytes(launch: LaunchConfig, site: Site, costs: Costs) -> int:
    """Return the bytes that a worker needs on its device; on a CPU, offloaded parts are there too."""
    offloaded = costs.memory.get("offloaded", 0) if site.placement(launch)[0] == "cpu" else 0
    return costs.memory.get("total", 0) + offloaded


def _suggest_workers(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[str]:
    """Yield the nearest number of workers that would fit."""
    current = site.count_workers(launch)
    divided = sum(costs.memory[part] for part in _DIVIDED_PARTS)
    fitting = [
        count
        for count in divisors(config.data.shards)
        if costs.memory["total"] - divided + divided * current / count <= site.memory_per_worker(launch, count)
    ]
    if fitting:
        nearest = min(fitting, key=lambda count: abs(count - current))
        yield f"{nearest} worker{'' if nearest == 1 else 's'}"


def _suggest_files(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[str]:
    """Yield the option to leave images in files, if that would be enough."""
    workers = site.count_workers(launch)
    saved = costs.memory["data"] - image_storage.worker_share(config, workers).streaming_bytes
    if saved > 0 and _required_bytes(launch, site, costs) - saved <= site.memory_per_worker(launch, workers):
        yield "data.images_in files"


def _suggest_micro_batch(config: RunConfig, launch: LaunchConfig, site: Site, costs: Costs) -> Iterator[str]:
    """Yield the largest micro-batch that would fit."""
    available, activations = site.memory_per_worker(launch, site.count_workers(launch)), costs.memory["activations"]
    sizes = range(config.data.shards, config.micro_batch, config.data.shards)
    fitting = [
        images
        for images in sizes
        if config.train.batch % images == 0
        and costs.memory["total"] - activations * (1 - images / config.micro_batch) <= available
    ]
    if fitting:
        yield f"train.micro_batch {fitting[-1]} (which is another run)"


def warn_small_batch(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[str]:
    """Warn about batches so small that a GPU waits for kernel launches and for the other workers."""
    workers, shards, micro = site.count_workers(launch), config.data.shards, config.micro_batch
    if site.placement(launch)[0] != "cuda" or micro // workers >= MIN_IMAGES:
        return
    key = "train.batch" if micro == config.train.batch else "train.micro_batch"
    fitting_counts = [count for count in divisors(shards) if count * MIN_IMAGES <= micro]
    fewer_workers = f"{fitting_counts[-1]} workers or " if fitting_counts else ""
    larger_batch = math.ceil(workers * MIN_IMAGES / shards) * shards
    yield (
        f"{key} {micro} gives each of {workers} GPUs {micro // workers} images at a time, too few to use a GPU well: "
        f"take {fewer_workers}{key} {larger_batch} (which is another run)"
    )


def warn_unknown_costs(costs: Costs) -> Iterator[str]:
    if costs.probe_error:
        yield f"shapes and memory could not be checked: {costs.probe_error}"
