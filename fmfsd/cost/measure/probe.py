"""What a config costs, found by a forward pass of tensors that have a shape and no memory."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.config import RunConfig
from fmfsd.config.names import TIMM
from fmfsd.cost.estimate import (
    ChannelStatistics,
    Device,
    HeadCost,
    Layer,
    MemoryCost,
    ParameterCount,
    Probe,
    Shape,
    dimensions,
)
from fmfsd.cost.measure.graph_costs import HeadCosts, ModuleShares, Names, needed_to_train, parameters_behind
from fmfsd.cost.measure.head_paths import HeadPath, paths
from fmfsd.cpu import tensor_layout
from fmfsd.data.shards.storage import Part
from fmfsd.distributed.sync_batch_norm import synchronise_batch_norm
from fmfsd.engine.build import build_loss
from fmfsd.engine.precision import Form
from fmfsd.engine.training_pass import may_be_compiled
from fmfsd.errors import ConfigError
from fmfsd.model.backbones import Backbone
from fmfsd.model.backbones.timm import statistics_of_weights
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import early_heads
from fmfsd.model.network import Network, Outputs
from fmfsd.model.spatial_enhancement import SpatialScores

CPU, META = torch.device("cpu"), torch.device("meta")
_PARTS = {"backbone": ("backbone", "deepest_head"), "branches": ("branches", "heads", "projections")}
"""Which of a network's children are counted as what; the others are its fusion."""


def probe(config: RunConfig, *, workers: int, device: Device = "cpu") -> Probe:
    """What a run of `config` by so many workers, each on such a device, costs each. ConfigError if they do not divide
    the shards. The same on every machine, but that a CPU without a C++ compiler keeps more activations."""
    if config.data.shards % workers:
        fits = ", ".join(str(count) for count in range(1, config.data.shards + 1) if config.data.shards % count == 0)
        raise ConfigError(f"{workers} workers do not divide data.shards {config.data.shards}; what does: {fits}")
    network = _network(config, workers)
    with tensor_layout.left_out() if device == "cuda" else nullcontext():
        if device == "cuda" and may_be_compiled(config):
            _keep_inputs_only(network)
        found = _forward(config, network, workers)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    costs = HeadCosts(sizes, found.macs, found.trained, found.needed)
    return Probe(
        workers,
        config.model.fusion,
        tuple(_heads(network, found.shapes, costs)),
        _parameters(network),
        costs.total.macs,
        plain=costs.plain,
        trunk=costs.trunk,
        shared=costs.shared,
        memory=_memory(config, network, found.saved_bytes, workers),
        device=device,
        pretrained_statistics=_pretrained_statistics(config),
    )


def _pretrained_statistics(config: RunConfig) -> ChannelStatistics | None:
    """Also of a model that is not pretrained, if the config asks for them."""
    if not config.model.pretrained and "auto" not in (config.data.mean, config.data.std):
        return None
    return statistics_of_weights(config.model.backbone.removeprefix(TIMM), pretrained=config.model.pretrained)


def _heads(network: Network, shapes: Mapping[str, Shape], costs: HeadCosts) -> Iterator[HeadCost]:
    named = zip(network.head_names, network.head_places, paths(network), strict=True)
    exit_macs = _exit_macs(network, costs)
    for number, (name, place, path) in enumerate(named):
        layers = [Layer(called, shapes[where]) for called, where in (*path.before, *path.after)]
        own, alone = costs.own[number], costs.of_heads([number])
        yield HeadCost(
            name,
            place,
            shapes[place],
            _in_words(path, dimensions(layers[0].shape)),
            tuple(layers),
            own=own,
            training_share=own.macs / costs.total.macs,
            alone=alone,
            of_plain=alone.macs / costs.plain.macs,
            exits_of_plain=exit_macs[name] / costs.plain.macs if name in exit_macs else None,
        )


def _exit_macs(network: Network, costs: HeadCosts) -> dict[str, int]:
    """Return the multiply-adds of an image that leaves at each exit, after the early heads before it were computed."""
    exits = (*early_heads(network), network.head_names[-1])
    numbers = [network.head_names.index(name) for name in exits]
    return {name: costs.of_heads(numbers[: count + 1]).macs for count, name in enumerate(exits)}


def _in_words(path: HeadPath, first_shape: str) -> str:
    """As `stage1 64x32x32 > sepconv 128 /2 | sepconv 256 /2 > head`: the map that is fused is the one at the bar."""
    before, after = ([called for called, _ in layers] for layers in (path.before, path.after))
    before[0] = f"{before[0]} {first_shape}"
    up_to_head = " > ".join([*after, "head"])
    return f"{' > '.join(before)} {'|' if path.is_fused else '>'} {up_to_head}"


def _network(config: RunConfig, workers: int) -> Network:
    """As a worker has it, without its memory. Weights that are to be fetched are fetched now, and not by workers."""
    if config.model.pretrained:
        build_network(config)
        config = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})})
    with META:
        network = Form.of(config.train).given_to(build_network(config), META)
        if workers > 1 and config.model.sync_bn in ("auto", True):
            synchronise_batch_norm(network, lambda sums: sums, workers)
    return network


def _keep_inputs_only(network: nn.Module) -> None:
    """Of spatial enhancement: a compiler computes all that is inside it once more, rather than keep it."""
    for layer in network.modules():
        if isinstance(layer, SpatialScores):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]


def _parameters(network: nn.Module) -> ParameterCount:
    def count(*names: str) -> int:
        parts = (child for name, child in network.named_children() if name in names)
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    total = sum(parameter.numel() for parameter in network.parameters())
    backbone, branches = (count(*names) for names in _PARTS.values())
    return ParameterCount(total, backbone, branches, fusion=total - backbone - branches)


def _memory(config: RunConfig, network: nn.Module, activations: int, workers: int) -> MemoryCost:
    """An average is one of all weights and buffers, whole on every worker; the rest is as ZeRO divides it."""
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    averages = (config.train.ema is not None) * (parameters + buffers)
    stage = config.engine.zero_stage if config.engine.name == "deepspeed" else 0
    kept = config.optim.kept_per_weight + (stage > 0)  # whose optimizer has weights of its own
    step = kept * parameters // (workers if stage else 1)
    offloaded = bool(config.engine.offload and stage)
    parts = {
        "parameters": parameters // (workers if stage == 3 else 1),
        "buffers": buffers,
        "gradients": parameters // (workers if stage >= 2 else 1),
        "optimizer": (not offloaded) * step + averages,
        "activations": activations,
        "data": Part.published(config.data, workers).held_bytes,
    }
    return MemoryCost(**parts, total=sum(parts.values()), offloaded=offloaded * step)


class _Forward(NamedTuple):
    """Maps at places and behind modules; modules' own multiply-adds an image; the parameters that each head needs in
    training, and its logits need; what is saved for the backward pass."""

    shapes: dict[str, Shape]
    macs: dict[str, int]
    trained: list[Names]
    needed: list[Names]
    saved_bytes: int


def _forward(config: RunConfig, network: Network, workers: int) -> _Forward:
    """Of a worker's part of a micro-batch."""
    batch, shapes, counter = config.micro_batch // workers, dict[str, Shape](), FlopCounterMode(display=False)
    _note_shapes(network, shapes)
    shares = ModuleShares(network, counter.get_total_flops)
    with FakeTensorMode(), _Statistics():  # type: ignore[no-untyped-call]
        values = _pretended(network)
        saved = _Saved(values)
        with counter, saved_tensors_hooks(saved.add, lambda tensor: tensor):
            outputs = _outputs_and_loss(config, network, values, batch, workers)
        parameters = {name: value for name, value in values.items() if value.requires_grad}
        always = _always_whole(network)
        needed = [parameters_behind([logits], parameters) | always for logits in outputs.logits]
        trained = needed_to_train(outputs, parameters)
    macs = {name: flops // (2 * batch) for name, flops in shares.found.items() if flops}
    return _Forward(shapes, macs, trained, needed, saved.nbytes)


def _always_whole(network: Network) -> Names:
    """The parameters of a backbone that gives no map before its end."""
    if isinstance(network.backbone, Backbone):
        return frozenset()
    return frozenset(f"backbone.{name}" for name, _ in network.backbone.named_parameters())


def _outputs_and_loss(
    config: RunConfig, network: Network, values: dict[str, Tensor], batch: int, workers: int
) -> Outputs:
    form, loss = Form.of(config.train), build_loss(config)
    images = torch.empty(batch, 3, *2 * [config.data.size], dtype=form.dtype).contiguous(memory_format=form.layout)
    with form.autocast("cpu"):
        try:
            outputs: Outputs = functional_call(network, values, (images,))
        except ValueError as error:
            raise ConfigError(f"a worker can't train on {batch} images at a time: {error}") from error
    terms = loss.terms(outputs, torch.zeros(batch, dtype=torch.int64))
    loss.total(terms, terms.squares_F.detach(), world_size=workers)
    return outputs


def _note_shapes(network: Network, shapes: dict[str, Shape]) -> None:
    """Of the maps that a path leads along, when they are made: those of the backbone by place, others by layer."""
    network.backbone.register_forward_pre_hook(_noting(shapes))
    places = {place.name for place in network.backbone.places}
    layers = {where for path in paths(network) for _, where in (*path.before, *path.after)} - places
    for name in layers:
        network.get_submodule(name).register_forward_hook(_note_shape(shapes, name))


def _note_shape(shapes: dict[str, Shape], name: str) -> Any:
    def note(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        shapes[name] = _shape(output)

    return note


def _shape(map_BCHW: Tensor) -> Shape:
    _, channels, height, width = map_BCHW.shape
    return channels, height, width


def _noting(shapes: dict[str, Shape]) -> Any:
    """A backbone's visitor that also notes the shapes of what it is shown."""

    def replaced(_backbone: nn.Module, arguments: Any) -> Any:
        images, visit = arguments

        def noting(place: str, x: Tensor) -> Tensor:
            shapes[place] = _shape(x)
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
