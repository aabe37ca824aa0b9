"""Measured memory of a real forward pass."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fmfsd.config import RunConfig
from fmfsd.data.shards.index import IMAGE_SHAPE
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.build import build_loss
from fmfsd.engine.precision import DTYPES
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.model.build import build_network


def measure_saved_bytes(comms: Comms, config: RunConfig) -> int:
    """Return the bytes that autograd saves for a micro-batch on this worker, without parameters and buffers."""
    loss = build_loss(config)
    engine = TorchEngine(build_network(config), loss, config, comms, torch.device("cpu"))
    network_tensors = {tensor.untyped_storage().data_ptr() for tensor in engine.network.state_dict().values()}
    saved: dict[int, torch.UntypedStorage] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in network_tensors:
            saved[storage.data_ptr()] = storage
        return tensor

    batch = config.micro_batch // comms.size
    images, labels = torch.randn(batch, *IMAGE_SHAPE, dtype=DTYPES[config.train.precision]), torch.zeros(batch).long()
    with saved_tensors_hooks(record, lambda tensor: tensor):
        terms = engine.compute_terms(images, labels)
        loss.total(terms, comms.all_reduce_(terms.squares_F.detach().clone()), world_size=comms.size)
    return sum(storage.nbytes() for storage in saved.values())
