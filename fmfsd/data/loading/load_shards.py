"""A worker's part of a split, wherever its images are."""

import logging
import socket

import torch

from fmfsd.config.schema import DataConfig
from fmfsd.data.loading.shards_in_memory import Shards, load_own_shards
from fmfsd.data.loading.shards_streaming import ShardsOnDisk
from fmfsd.data.shards.index import SetIndex
from fmfsd.data.shards.storage import Part
from fmfsd.distributed.collectives import Comms
from fmfsd.system.memory import usable_memory

log = logging.getLogger(__name__)


def own_shards(
    index: SetIndex, split: str, *, rank: int, world_size: int, device: torch.device, in_files: bool
) -> Shards:
    """With its images in the memory of `device` or, `in_files`, read when they are needed."""
    if in_files:
        return ShardsOnDisk(index, split, rank=rank, world_size=world_size, device=device)
    return load_own_shards(index, split, rank=rank, world_size=world_size, device=device)


def images_stay_in_files(data: DataConfig, index: SetIndex, comms: Comms, device: torch.device) -> bool:
    """What `data` says or, left to us, the size of the set. Every worker makes the call; they need not agree."""
    part, memory = Part.of(index, comms.size), _memory_of_a_worker(comms, device)
    found = part.stays_in_files(data, memory)
    if found:
        told = f"would take {part.held_bytes >> 20} MiB, this worker may use {memory >> 20} MiB"
        log.info("images stay in %s and are read ahead of their turn (they %s)", index.folder, told)
    return found


def _memory_of_a_worker(comms: Comms, device: torch.device) -> int:
    """Bytes where its images would be; of a machine that it shares with others, its share."""
    neighbours = comms.gather(socket.gethostname())
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return usable_memory() // neighbours.count(socket.gethostname())
