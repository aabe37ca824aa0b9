"""What a config costs, found by a forward pass of tensors that have a shape and no memory."""

from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.config import TrainConfig
from fmfsd.config.known import DATASETS
from fmfsd.data.index import SHAPE
from fmfsd.engine.form import Form
from fmfsd.engine.sync_bn import synchronise_batch_norm
from fmfsd.errors import ConfigError
from fmfsd.model.build import Network, build_network
from fmfsd.probed import HeadCost, MemoryCost, ParameterCount, Probe, Shape
from fmfsd.trainer import build_loss

CPU, META = torch.device("cpu"), torch.device("meta")
_PARTS = {"backbone": ("backbone", "deepest_head"), "branches": ("branches", "heads", "projections")}
"""Which of a network's children are counted as what; the others are its fusion."""


def probe(config: TrainConfig, *, workers: int) -> Probe:
    """What a run of `config` by so many workers costs each. ConfigError if they do not divide the shards."""
    if config.data.shards % workers:
        fits = ", ".join(str(count) for count in range(1, config.data.shards + 1) if config.data.shards % count == 0)
        raise ConfigError(f"{workers} workers do not divide data.shards {config.data.shards}; what does: {fits}")
    network = _network(config, workers)
    found = _forward(config, network, workers)
    named = zip(network.head_names, network.head_places, strict=True)
    heads = (HeadCost(name, place, found.shapes[place]) for name, place in named)
    memory = _memory(config, network, found.saved_bytes, workers)
    return Probe(workers, tuple(heads), _parameters(network), found.macs, memory)


def _network(config: TrainConfig, workers: int) -> Network:
    """As a worker has it, without its memory. Weights that are to be fetched are fetched now, and not by workers."""
    if config.model.pretrained:
        build_network(config)
        config = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})})
    with META:
        network = Form.of(config.train).given_to(build_network(config), META)
        if workers > 1 and config.model.sync_bn in ("auto", True):
            synchronise_batch_norm(network, lambda sums: sums, workers)
    return network


def _parameters(network: nn.Module) -> ParameterCount:
    def count(*names: str) -> int:
        parts = (child for name, child in network.named_children() if name in names)
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    total = sum(parameter.numel() for parameter in network.parameters())
    backbone, branches = (count(*names) for names in _PARTS.values())
    return ParameterCount(total, backbone, branches, fusion=total - backbone - branches)


def _memory(config: TrainConfig, network: nn.Module, activations: int, workers: int) -> MemoryCost:
    """SGD keeps a momentum a parameter, unless it has none."""
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    parts = {
        "parameters": parameters,
        "buffers": sum(buffer.nbytes for buffer in network.buffers()),
        "gradients": parameters,
        "optimizer": parameters if config.optim.momentum else 0,
        "activations": activations,
        "data": _held_samples(config, workers) * _SAMPLE_BYTES,
    }
    return MemoryCost(**parts, total=sum(parts.values()))


_SAMPLE_BYTES = SHAPE[0] * SHAPE[1] * SHAPE[2] + 8 + 8
"""A uint8 image, its label and its position in the official file."""


def _held_samples(config: TrainConfig, workers: int) -> int:
    """Of all splits, by rank 0, which has the larger shards."""
    known, (shards, valid) = DATASETS[config.data.name], (config.data.shards, config.data.valid)
    share = shards // workers
    return sum(
        share * (samples // shards) + min(share, samples % shards)
        for samples in (known.train_samples - valid, valid, known.test_samples)
    )


class _Forward(NamedTuple):
    """The map at each place, multiply-adds an image, and what is saved for the backward pass."""

    shapes: dict[str, Shape]
    macs: int
    saved_bytes: int


def _forward(config: TrainConfig, network: Network, workers: int) -> _Forward:
    """Of a worker's part of a micro-batch."""
    form, loss, batch = Form.of(config.train), build_loss(config), config.micro_batch // workers
    shapes: dict[str, Shape] = {}
    network.backbone.register_forward_pre_hook(_noting(shapes))
    with FakeTensorMode(), _Statistics():  # type: ignore[no-untyped-call]
        values = _pretended(network)
        saved = _Saved(values)
        images = torch.empty(batch, 3, *2 * [config.data.size], dtype=form.dtype).contiguous(memory_format=form.layout)
        labels = torch.zeros(batch, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(saved.add, lambda tensor: tensor):
            with form.autocast("cpu"):
                outputs = functional_call(network, values, (images,))
            terms = loss.terms(outputs, labels)
            loss.total(terms, terms.squares_F.detach(), world_size=workers)
    return _Forward(shapes, counter.get_total_flops() // (2 * batch), saved.nbytes)


def _noting(shapes: dict[str, Shape]) -> Any:
    """A backbone's visitor that also notes the shapes of what it is shown."""

    def replaced(_backbone: nn.Module, arguments: Any) -> Any:
        images, visit = arguments

        def noting(place: str, x: Tensor) -> Tensor:
            _, channels, height, width = x.shape
            shapes[place] = channels, height, width
            return visit(place, x)

        return images, noting

    return replaced


def _pretended(network: nn.Module) -> dict[str, Tensor]:
    """Tensors on the CPU in the place of those on the meta device, which autocast passes over."""
    return {
        name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CPU).requires_grad_(
            value.requires_grad
        )
        for name, value in chain(network.named_parameters(), network.named_buffers())
    }


class _Saved:
    """The storages that a forward pass saves for the backward pass, beside the network's own."""

    def __init__(self, own: Mapping[str, Tensor]) -> None:
        self._own = {value.untyped_storage()._cdata for value in own.values()}
        self._found: dict[int, torch.UntypedStorage] = {}  # kept, so that no other gets the same address

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._found[storage._cdata] = storage
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage in self._found.values())


class _Statistics(TorchDispatchMode):
    """Says what shape batch statistics have: before 2.15 torch can't tell that without computing them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.batch_norm_update_stats.default:
            return torch.empty_like(args[1]), torch.empty_like(args[1])
        return func(*args, **(kwargs or {}))
