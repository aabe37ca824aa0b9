"""Image storage: whether a worker's images are in memory or in files, and how much memory they need."""

from dataclasses import replace

from fmfsd.config import RunConfig
from fmfsd.data.shards.index import prepared_set_folder, read_index
from fmfsd.data.shards.storage import WorkerShare
from fmfsd.errors import DataError
from launcher.config.byte_sizes import format_size
from launcher.config.launch_config import LaunchConfig
from launcher.resources.config_cost import Costs
from launcher.resources.site import Site


def worker_share(config: RunConfig, workers: int) -> WorkerShare:
    """Return the share of the images that each of `workers` workers has.

    It is computed from published sizes if the data set is not prepared as the config requires.
    """
    try:
        index = read_index(prepared_set_folder(config.data))
    except DataError:
        return WorkerShare.from_published_sizes(config.data, workers)
    return (
        WorkerShare.from_index(index, workers)
        if index.shards == config.data.shards
        else WorkerShare.from_published_sizes(config.data, workers)
    )


def images_stay_in_files(config: RunConfig, launch: LaunchConfig, site: Site) -> bool:
    workers = site.count_workers(launch)
    return worker_share(config, workers).should_stream(config.data, site.memory_per_worker(launch, workers))


def add_image_memory(costs: Costs, config: RunConfig, launch: LaunchConfig, site: Site) -> Costs:
    """Return the costs with the memory that the images of the existing set need where they are stored."""
    if not costs.memory:
        return costs
    part = worker_share(config, site.count_workers(launch))
    data = part.streaming_bytes if images_stay_in_files(config, launch, site) else part.in_memory_bytes
    total = costs.memory["total"] - costs.memory["data"] + data
    return replace(costs, memory={**costs.memory, "data": data, "total": total})


def describe_image_storage(config: RunConfig, launch: LaunchConfig, site: Site) -> str:
    """Return the message that images stay in their files; empty if they are loaded into memory."""
    if not images_stay_in_files(config, launch, site):
        return ""
    held = format_size(worker_share(config, site.count_workers(launch)).in_memory_bytes)
    return f"images ({held} a worker) stay in their files and are prefetched"
