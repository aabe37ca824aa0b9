"""Splits a model that returns a list of feature maps into sequential parts, using its graph (torch.fx).

A cut is at a value from which, and from nothing else before it, all later maps are computed; the cut's own map is that
value or a rearrangement of it. B batch, C channels, H height, W width, N tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from fmfsd.model.backbones.backbone import Backbone, ExternalLayers, Visit

ReadMap = Callable[[Tensor], Tensor]
"""Converts a map as the model returns it to (B, C, H, W)."""


class MapView:
    """Converts between a value of the graph and its map (B, C, H, W); this class is for values that are maps."""

    has_extra_values = False
    """True if the value holds more than the map."""

    def to_map(self, value: Tensor) -> Tensor:
        return value

    def replace_map(self, _value: Tensor, map_BCHW: Tensor) -> Tensor:
        """Return `value` with its map replaced."""
        return map_BCHW


class ChannelsLastView(MapView):
    """For values (B, H, W, C)."""

    def to_map(self, value: Tensor) -> Tensor:
        return value.permute(0, 3, 1, 2)

    def replace_map(self, _value: Tensor, map_BCHW: Tensor) -> Tensor:
        return map_BCHW.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class TokenView(MapView):
    """For values (B, N, C): class and register tokens, then one token per position, row by row."""

    num_prefix: int
    side: int

    @property
    def has_extra_values(self) -> bool:  # type: ignore[override]
        return self.num_prefix > 0

    def to_map(self, value: Tensor) -> Tensor:
        return value[:, self.num_prefix :].transpose(1, 2).unflatten(2, (self.side, self.side))

    def replace_map(self, value: Tensor, map_BCHW: Tensor) -> Tensor:
        tokens_BNC = map_BCHW.flatten(2).transpose(1, 2)
        return torch.cat([value[:, : self.num_prefix], tokens_BNC], dim=1) if self.num_prefix else tokens_BNC


class SplitBackbone(Backbone):
    """A model in sequential parts; `views` convert the values that they exchange to maps."""

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        views: Sequence[MapView],
        channels: Sequence[Sequence[int]],
        strides: Sequence[int],
    ) -> None:
        super().__init__(stem, [[stage] for stage in stages], channels, strides)
        self._views = tuple(views)
        self.passes_maps_only = not any(view.has_extra_values for view in views)

    def forward(self, images: Tensor, visit: Visit = lambda _name, x: x) -> Tensor:
        """(B, 3, H, W) -> the last map. The map that `visit` returns replaces the map in the input of the next part."""
        value = self.stem(images)
        for point, view, block in zip(self.tap_points, self._views, self.blocks(), strict=True):
            value = self.run_block(block, value)
            map_BCHW = view.to_map(value)
            x = visit(point.name, map_BCHW)
            value = value if x is map_BCHW else view.replace_map(value, x)
        return x


@dataclass(frozen=True)
class Cut:
    """A cut behind the node of this name in the model's graph; `view` converts the node's value to a map."""

    node: str
    view: MapView


def find_cuts(model: nn.Module, images: Tensor, count: int, read: ReadMap) -> list[Cut]:
    """Return the cuts at the last `count` maps that `model` returns for `images`; an empty list if it can't be split.

    The model runs once; on the meta device this takes no memory.
    """
    graph = _graph(model)
    if graph is None:
        return []
    values = _values(model, graph, images)
    candidates = [list(_candidates(end, values, read)) for end in _returned(graph)[-count:]]
    cuts = [Cut(node.name, view) for node, view in _chain(_images(graph), candidates) or []]
    return cuts if _share_nothing(split_at(model, cuts)) else []


def split_at(model: nn.Module, cuts: Sequence[Cut]) -> list[ExternalLayers]:
    """Return the layers up to the first cut, and from each cut to the next.

    `cuts` were found on a model of the same architecture.
    """
    graph = _graph(model)
    assert graph is not None
    nodes = {node.name: node for node in graph.nodes}
    return [_part(model, start, end) for start, end in pairwise([_images(graph), *(nodes[cut.node] for cut in cuts)])]


class _Tracer(fx.Tracer):
    """Traces only the model's own forward method: every module that it calls is a leaf."""

    def is_leaf_module(self, _module: nn.Module, _name: str) -> bool:
        return True


def _graph(model: nn.Module) -> fx.Graph | None:
    """Return the graph, or None if the model can't be traced or has another graph in evaluation mode."""
    was_training = model.training
    try:
        training, evaluation = (_Tracer().trace(model.train(mode)) for mode in (True, False))
    except Exception:  # tracing can raise anything in the model's code
        return None
    finally:
        model.train(was_training)
    return training if str(training) == str(evaluation) else None


def _images(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op == "placeholder")


def _returned(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes of the maps if the model returns a list of maps, else an empty list."""
    (returned,) = next(node for node in reversed(graph.nodes) if node.op == "output").args
    maps = list(returned) if isinstance(returned, list | tuple) else []
    return maps if all(isinstance(each, fx.Node) for each in maps) else []


def _values(model: nn.Module, graph: fx.Graph, images: Tensor) -> Mapping[fx.Node, Any]:
    """Return the value of every node."""
    nodes = tuple(node for node in graph.nodes if node.op not in ("placeholder", "output"))
    outputs = fx.GraphModule(model, _subgraph([_images(graph)], nodes))(images)
    return {_images(graph): images, **dict(zip(nodes, outputs, strict=True))}


def _candidates(end: fx.Node, values: Mapping[fx.Node, Any], read: ReadMap) -> Iterator[tuple[fx.Node, MapView]]:
    """Go back from a map's node while values are only rearranged; yield the nodes whose values contain the map."""
    node: Any = end
    while isinstance(node, fx.Node) and isinstance(value := values[node], Tensor):
        rearrange = _subgraph([_images(end.graph), node], end)
        if any(step.op in ("call_module", "get_attr") for step in rearrange.nodes):
            return
        map_BCHW = read(fx.GraphModule({}, rearrange)(values[_images(end.graph)], _numbered(value)))
        yield from (
            (node, view) for view in _views(value, map_BCHW) if torch.equal(view.to_map(_numbered(value)), map_BCHW)
        )
        node = node.args[0] if node.op in ("call_function", "call_method") and node.args else None


def _numbered(value: Tensor) -> Tensor:
    """Return a tensor of this shape with a different number at each position, some of them negative."""
    return torch.arange(value.numel(), dtype=torch.float64, device="cpu").view(value.shape) - value.numel() // 2


def _views(value: Tensor, map_BCHW: Tensor) -> Iterator[MapView]:
    """Yield the views that can convert a value of this shape to a map of that shape."""
    _, channels, height, width = map_BCHW.shape
    if value.shape[1:] == (channels, height, width):
        yield MapView()
    if value.shape[1:] == (height, width, channels):
        yield ChannelsLastView()
    if value.dim() == 3 and value.shape[2] == channels and value.shape[1] >= height * width:
        yield TokenView(value.shape[1] - height * width, height)


def _chain(
    start: fx.Node, candidates: Sequence[Sequence[tuple[fx.Node, MapView]]]
) -> list[tuple[fx.Node, MapView]] | None:
    """Return one candidate per map, each computed only from the previous one, or None if there is no such chain."""
    if not candidates:
        return []
    for node, view in candidates[0]:
        if _images(node.graph) not in _needed([start], [node]) and (rest := _chain(node, candidates[1:])) is not None:
            return [(node, view), *rest]
    return None


def _needed(starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that are needed to compute `ends` from the values of `starts`, including `ends`."""
    pending, needed = [*ends], set[fx.Node]()
    while pending:
        node = pending.pop()
        if node not in needed and node not in starts:
            needed.add(node)
            pending += node.all_input_nodes
    return needed


def _subgraph(starts: Sequence[fx.Node], ends: fx.Node | tuple[fx.Node, ...]) -> fx.Graph:
    """Return the graph that computes the value or values of `ends` from those of `starts`."""
    graph, needed = fx.Graph(), _needed(starts, ends if isinstance(ends, tuple) else (ends,))
    copies = {start: graph.placeholder(start.name) for start in starts}
    for node in starts[0].graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.node.map_arg(ends, copies.__getitem__))
    return graph


def _part(model: nn.Module, start: fx.Node, end: fx.Node) -> ExternalLayers:
    """Return the layers as a sequence if they run one after another, else as a graph module."""
    graph = _subgraph([start], end)
    source, *steps, _ = graph.nodes
    if all(step.op == "call_module" and step.args == (before,) for before, step in pairwise([source, *steps])):
        return ExternalLayers(*(model.get_submodule(step.target) for step in steps))
    return ExternalLayers(fx.GraphModule(model, graph))


def _share_nothing(parts: Sequence[nn.Module]) -> bool:
    """Return whether no tensor is in two parts or under two names, which checkpoints do not support."""
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return len(tensors) == len(set(tensors))
