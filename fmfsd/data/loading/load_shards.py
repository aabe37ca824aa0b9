"""Opens a worker's shards of a split, in memory or streamed from their files."""

import logging
import socket

import torch

from fmfsd.config.schema import DataConfig
from fmfsd.data.loading.shards_in_memory import Shards, load_worker_shards
from fmfsd.data.loading.shards_streaming import StreamedShards
from fmfsd.data.shards.index import SetIndex
from fmfsd.data.shards.storage import WorkerShare
from fmfsd.distributed.collectives import Comms
from fmfsd.system.memory import usable_memory

log = logging.getLogger(__name__)


def open_worker_shards(
    index: SetIndex, split: str, *, rank: int, world_size: int, device: torch.device, stream: bool
) -> Shards:
    """Return the worker's shards: images in the memory of `device` or, with `stream`, streamed from their files."""
    if stream:
        return StreamedShards(index, split, rank=rank, world_size=world_size, device=device)
    return load_worker_shards(index, split, rank=rank, world_size=world_size, device=device)


def should_stream_images(data: DataConfig, index: SetIndex, comms: Comms, device: torch.device) -> bool:
    """Return whether images are streamed from files: as set in `data` or, for auto, by the size of the set.

    Every worker must make the call; workers may get different answers.
    """
    part, memory = WorkerShare.from_index(index, comms.size), _memory_per_worker(comms, device)
    streams = part.should_stream(data, memory)
    if streams:
        reason = f"in memory they would take {part.in_memory_bytes >> 20} MiB of this worker's {memory >> 20} MiB"
        log.info("images are streamed from the files in %s (%s)", index.folder, reason)
    return streams


def _memory_per_worker(comms: Comms, device: torch.device) -> int:
    """Return the bytes of memory for a worker's images: its GPU's, or its share of the host's."""
    hosts = comms.all_gather_object(socket.gethostname())
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return usable_memory() // hosts.count(socket.gethostname())
