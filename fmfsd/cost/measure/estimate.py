"""Cost estimate of a config by a forward pass on fake tensors, which have a shape but no memory."""

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
from fmfsd.cost.cost_report import (
    ChannelStatistics,
    CostEstimate,
    Device,
    HeadCost,
    Layer,
    MemoryCost,
    ParameterCount,
    Shape,
    format_shape,
)
from fmfsd.cost.measure.graph_costs import (
    CostBreakdown,
    ModuleCounts,
    ParameterNames,
    find_reachable_parameters,
    find_training_parameters,
)
from fmfsd.cost.measure.head_paths import HeadPath, find_head_paths
from fmfsd.cpu import tensor_layout
from fmfsd.data.shards.storage import WorkerShare
from fmfsd.distributed.sync_batch_norm import convert_batch_norm
from fmfsd.engine.build import build_loss
from fmfsd.engine.compiled_pass import may_be_compiled
from fmfsd.engine.precision import PrecisionFormat
from fmfsd.errors import ConfigError
from fmfsd.model.backbones import Backbone
from fmfsd.model.backbones.timm import load_weight_statistics
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import early_head_names
from fmfsd.model.network import Network, Outputs
from fmfsd.model.spatial_enhancement import SpatialScores

CPU, META = torch.device("cpu"), torch.device("meta")
_PARTS = {"backbone": ("backbone", "deepest_head"), "branches": ("branches", "heads", "projections")}
"""A network's children by the group that their parameters count for; all others count as fusion."""


def estimate_cost(config: RunConfig, *, workers: int, device: Device = "cpu") -> CostEstimate:
    """Return what a run of `config` costs each of `workers` workers on `device`.

    The result is the same on every machine, except that a CPU without a C++ compiler saves more activations.
    ConfigError if the number of workers does not divide data.shards.
    """
    if config.data.shards % workers:
        fits = ", ".join(str(count) for count in range(1, config.data.shards + 1) if config.data.shards % count == 0)
        raise ConfigError(f"{workers} workers do not divide data.shards {config.data.shards}: use one of {fits}")
    network = _network(config, workers)
    with tensor_layout.disable_kernels() if device == "cuda" else nullcontext():
        if device == "cuda" and may_be_compiled(config):
            _recompute_enhancement(network)
        measured = _forward(config, network, workers)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    costs = CostBreakdown(sizes, measured.macs, measured.trained, measured.needed)
    return CostEstimate(
        workers,
        config.model.fusion,
        tuple(_heads(network, measured.shapes, costs)),
        _count_parameters(network),
        costs.total.macs,
        plain=costs.plain,
        trunk=costs.trunk,
        shared=costs.shared,
        memory=_memory(config, network, measured.saved_bytes, workers),
        device=device,
        pretrained_statistics=_pretrained_statistics(config),
    )


def _pretrained_statistics(config: RunConfig) -> ChannelStatistics | None:
    """Return them for pretrained weights, and for data.mean or data.std auto."""
    if not config.model.pretrained and "auto" not in (config.data.mean, config.data.std):
        return None
    return load_weight_statistics(config.model.backbone.removeprefix(TIMM), pretrained=config.model.pretrained)


def _heads(network: Network, shapes: Mapping[str, Shape], costs: CostBreakdown) -> Iterator[HeadCost]:
    heads = zip(network.head_names, network.head_taps, find_head_paths(network), strict=True)
    exit_macs = _exit_macs(network, costs)
    for number, (name, place, path) in enumerate(heads):
        layers = [
            Layer(label, shapes[where]) for label, where in (*path.layers_before_fusion, *path.layers_after_fusion)
        ]
        own, alone = costs.own[number], costs.cost_of_heads([number])
        yield HeadCost(
            name,
            place,
            shapes[place],
            _path_text(path, format_shape(layers[0].shape)),
            tuple(layers),
            own=own,
            training_share=own.macs / costs.total.macs,
            alone=alone,
            of_plain=alone.macs / costs.plain.macs,
            exits_of_plain=exit_macs[name] / costs.plain.macs if name in exit_macs else None,
        )


def _exit_macs(network: Network, costs: CostBreakdown) -> dict[str, int]:
    """Return the multiply-adds of an image that leaves at each exit, the early heads before it included."""
    exits = (*early_head_names(network), network.head_names[-1])
    numbers = [network.head_names.index(name) for name in exits]
    return {name: costs.cost_of_heads(numbers[: count + 1]).macs for count, name in enumerate(exits)}


def _path_text(path: HeadPath, first_shape: str) -> str:
    """Format a path as in `stage1 64x32x32 > sepconv 128 /2 | sepconv 256 /2 > head`; the bar marks the fused map."""
    before, after = ([label for label, _ in layers] for layers in (path.layers_before_fusion, path.layers_after_fusion))
    before[0] = f"{before[0]} {first_shape}"
    up_to_head = " > ".join([*after, "head"])
    return f"{' > '.join(before)} {'|' if path.is_fused else '>'} {up_to_head}"


def _network(config: RunConfig, workers: int) -> Network:
    """Build a worker's network on the meta device. Pretrained weights are downloaded here, so workers need not."""
    if config.model.pretrained:
        build_network(config)
        config = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False})})
    with META:
        network = PrecisionFormat.from_config(config.train).apply_to(build_network(config), META)
        if workers > 1 and config.model.sync_bn in ("auto", True):
            convert_batch_norm(network, lambda sums: sums, workers)
    return network


def _recompute_enhancement(network: nn.Module) -> None:
    """Save only the inputs of spatial enhancement: the compiler recomputes its activations in the backward pass."""
    for layer in network.modules():
        if isinstance(layer, SpatialScores):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]


def _count_parameters(network: nn.Module) -> ParameterCount:
    def count(*names: str) -> int:
        parts = (child for name, child in network.named_children() if name in names)
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    total = sum(parameter.numel() for parameter in network.parameters())
    backbone, branches = (count(*names) for names in _PARTS.values())
    return ParameterCount(total, backbone, branches, fusion=total - backbone - branches)


def _memory(config: RunConfig, network: nn.Module, activations: int, workers: int) -> MemoryCost:
    """Return the memory of a worker: EMA weights and buffers whole on each worker, the rest divided as ZeRO does."""
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    averages = (config.train.ema is not None) * (parameters + buffers)
    stage = config.engine.zero_stage if config.engine.name == "deepspeed" else 0
    tensors_per_weight = config.optim.state_per_weight + (stage > 0)  # ZeRO's optimizer holds master weights
    state = tensors_per_weight * parameters // (workers if stage else 1)
    offloaded = bool(config.engine.offload and stage)
    parts = {
        "parameters": parameters // (workers if stage == 3 else 1),
        "buffers": buffers,
        "gradients": parameters // (workers if stage >= 2 else 1),
        "optimizer": (not offloaded) * state + averages,
        "activations": activations,
        "data": WorkerShare.from_published_sizes(config.data, workers).in_memory_bytes,
    }
    return MemoryCost(**parts, total=sum(parts.values()), offloaded=offloaded * state)


class _Forward(NamedTuple):
    """Measurements of one forward pass.

    `shapes`: feature maps by backbone place and by module. `macs`: multiply-adds per image by module, without its
    submodules. `trained`, `needed`: the parameters that each head needs in training, and that its logits need.
    """

    shapes: dict[str, Shape]
    macs: dict[str, int]
    trained: list[ParameterNames]
    needed: list[ParameterNames]
    saved_bytes: int


def _forward(config: RunConfig, network: Network, workers: int) -> _Forward:
    """Measure one forward pass of a worker's part of a micro-batch."""
    batch, shapes, counter = config.micro_batch // workers, dict[str, Shape](), FlopCounterMode(display=False)
    _record_shapes(network, shapes)
    counts = ModuleCounts(network, counter.get_total_flops)
    with FakeTensorMode(), _BatchNormShapes():  # type: ignore[no-untyped-call]
        values = _fake_tensors(network)
        saved = _SavedTensors(values)
        with counter, saved_tensors_hooks(saved.add, lambda tensor: tensor):
            outputs = _outputs_and_loss(config, network, values, batch, workers)
        parameters = {name: value for name, value in values.items() if value.requires_grad}
        always = _always_needed(network)
        needed = [find_reachable_parameters([logits], parameters) | always for logits in outputs.logits]
        trained = find_training_parameters(outputs, parameters)
    macs = {name: flops // (2 * batch) for name, flops in counts.by_module.items() if flops}
    return _Forward(shapes, macs, trained, needed, saved.nbytes)


def _always_needed(network: Network) -> ParameterNames:
    """Return the parameters that every head needs: those of a backbone that returns all its maps at the end."""
    if isinstance(network.backbone, Backbone):
        return frozenset()
    return frozenset(f"backbone.{name}" for name, _ in network.backbone.named_parameters())


def _outputs_and_loss(
    config: RunConfig, network: Network, values: dict[str, Tensor], batch: int, workers: int
) -> Outputs:
    form, loss = PrecisionFormat.from_config(config.train), build_loss(config)
    images = torch.empty(batch, 3, *2 * [config.data.size], dtype=form.dtype).contiguous(
        memory_format=form.memory_format
    )
    with form.autocast("cpu"):
        try:
            outputs: Outputs = functional_call(network, values, (images,))
        except ValueError as error:
            raise ConfigError(f"a worker can't train on {batch} images at a time: {error}") from error
    terms = loss.terms(outputs, torch.zeros(batch, dtype=torch.int64))
    loss.total(terms, terms.squares_F.detach(), world_size=workers)
    return outputs


def _record_shapes(network: Network, shapes: dict[str, Shape]) -> None:
    """Register hooks that store the shapes of all maps on the paths: by place in the backbone, else by layer."""
    network.backbone.register_forward_pre_hook(_recording_visitor(shapes))
    places = {place.name for place in network.backbone.tap_points}
    layers = {
        where
        for path in find_head_paths(network)
        for _, where in (*path.layers_before_fusion, *path.layers_after_fusion)
    } - places
    for name in layers:
        network.get_submodule(name).register_forward_hook(_shape_hook(shapes, name))


def _shape_hook(shapes: dict[str, Shape], name: str) -> Any:
    def record(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        shapes[name] = _shape(output)

    return record


def _shape(map_BCHW: Tensor) -> Shape:
    _, channels, height, width = map_BCHW.shape
    return channels, height, width


def _recording_visitor(shapes: dict[str, Shape]) -> Any:
    """Return a hook that wraps the backbone's visitor so that it also records the shapes of the maps."""

    def wrap(_backbone: nn.Module, arguments: Any) -> Any:
        images, visit = arguments

        def record(place: str, x: Tensor) -> Tensor:
            shapes[place] = _shape(x)
            return visit(place, x)

        return images, record

    return wrap


def _fake_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return CPU tensors in place of the network's meta tensors, which autocast ignores."""
    return {
        name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CPU).requires_grad_(
            value.requires_grad
        )
        for name, value in chain(network.named_parameters(), network.named_buffers())
    }


class _SavedTensors:
    """Storages that a forward pass saves for the backward pass, without the network's own."""

    def __init__(self, own: Mapping[str, Tensor]) -> None:
        self._own = {value.untyped_storage()._cdata for value in own.values()}
        self._saved: dict[int, torch.UntypedStorage] = {}  # references, so that no address is reused

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._saved[storage._cdata] = storage
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage in self._saved.values())


class _BatchNormShapes(TorchDispatchMode):
    """Supplies the shapes of batch statistics: torch before 2.15 has no fake implementation of that operator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.batch_norm_update_stats.default:
            return torch.empty_like(args[1]), torch.empty_like(args[1])
        return func(*args, **(kwargs or {}))
