"""Image storage: whether a worker's images are in memory or in files, and how much memory they need."""

from dataclasses import replace

from fmfsd.config import RunConfig
from fmfsd.data.shards.index import read_index, set_folder
from fmfsd.data.shards.storage import Part
from fmfsd.errors import DataError
from launcher.config.byte_sizes import size
from launcher.config.launch_config import LaunchConfig
from launcher.resources.cost_probe import Costs
from launcher.resources.site import Site


def part_of(config: RunConfig, workers: int) -> Part:
    """Return the share of the images that each of `workers` workers has.

    It is computed from published sizes if the data set is not prepared as the config requires.
    """
    try:
        index = read_index(set_folder(config.data))
    except DataError:
        return Part.published(config.data, workers)
    return Part.of(index, workers) if index.shards == config.data.shards else Part.published(config.data, workers)


def stay_in_files(config: RunConfig, launch: LaunchConfig, site: Site) -> bool:
    workers = site.workers(launch)
    return part_of(config, workers).stays_in_files(config.data, site.memory_a_worker(launch, workers))


def counted(costs: Costs, config: RunConfig, launch: LaunchConfig, site: Site) -> Costs:
    """Return the costs with the memory that the images of the existing set need where they are stored."""
    if not costs.memory:
        return costs
    part = part_of(config, site.workers(launch))
    data = part.read_bytes if stay_in_files(config, launch, site) else part.held_bytes
    total = costs.memory["total"] - costs.memory["data"] + data
    return replace(costs, memory={**costs.memory, "data": data, "total": total})


def told(config: RunConfig, launch: LaunchConfig, site: Site) -> str:
    """Return the message that images stay in their files; empty if they are loaded into memory."""
    if not stay_in_files(config, launch, site):
        return ""
    held = size(part_of(config, site.workers(launch)).held_bytes)
    return f"images ({held} a worker) stay in their files and are prefetched"
