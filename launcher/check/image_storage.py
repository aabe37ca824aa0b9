"""Where the images of a launch will be, and what they take of a worker's memory."""

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
    """Of each of so many workers; of a set that is not there as it should be by what is published of it."""
    try:
        index = read_index(set_folder(config.data))
    except DataError:
        return Part.published(config.data, workers)
    return Part.of(index, workers) if index.shards == config.data.shards else Part.published(config.data, workers)


def stay_in_files(config: RunConfig, launch: LaunchConfig, site: Site) -> bool:
    workers = site.workers(launch)
    return part_of(config, workers).stays_in_files(config.data, site.memory_a_worker(launch, workers))


def counted(costs: Costs, config: RunConfig, launch: LaunchConfig, site: Site) -> Costs:
    """With what the images of the set that is there take, where they will be."""
    if not costs.memory:
        return costs
    part = part_of(config, site.workers(launch))
    data = part.read_bytes if stay_in_files(config, launch, site) else part.held_bytes
    total = costs.memory["total"] - costs.memory["data"] + data
    return replace(costs, memory={**costs.memory, "data": data, "total": total})


def told(config: RunConfig, launch: LaunchConfig, site: Site) -> str:
    """That they stay in their files; empty if they are in memory."""
    if not stay_in_files(config, launch, site):
        return ""
    held = size(part_of(config, site.workers(launch)).held_bytes)
    return f"images ({held} a worker) stay in their files and are read ahead of their turn"
