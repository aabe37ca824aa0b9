"""Pruning a network to one head: for inference, and to measure the cost of a head."""

import copy

from torch import Tensor, fx, nn

from fmfsd.cpu.depthwise import DepthwiseConv2d
from fmfsd.model.backbones.backbone import ExternalLayers
from fmfsd.model.network import Network, average_logits
from fmfsd.model.spatial_enhancement import PooledEnhancement, SpatialScores

ENSEMBLE = "ensemble"


def prune(network: Network, head: str = "deepest") -> fx.GraphModule:
    """Return a module from images (B, 3, H, W) to the logits (B, K) of `head`, for inference.

    `head` is one of `network.head_names` or `ensemble`. The module has copies of only the layers that the head needs,
    under their names in `network`; its logits equal those of `network` in evaluation mode, bit for bit. Raises
    ValueError if there is no such head.
    """
    if head not in (*network.head_names, ENSEMBLE):
        raise ValueError(f"unknown head {head!r}: choose one of {', '.join((*network.head_names, ENSEMBLE))}")
    return prune_graph(_OneHead(copy.deepcopy(network).eval(), head))


def prune_graph(whole: nn.Module) -> fx.GraphModule:
    """Trace `whole`, a module of images, and return a graph with only the layers that its output needs."""
    graph = fx.GraphModule(whole, _Tracer().trace(whole))
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


class _OneHead(nn.Module):
    def __init__(self, network: Network, head: str) -> None:
        super().__init__()
        self.network, self._head = network, head

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images).logits
        return average_logits(logits) if self._head == ENSEMBLE else logits[self.network.head_names.index(self._head)]


class _Tracer(fx.Tracer):
    """Traces into all modules except those whose code may depend on the shape or dtype of their input."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        is_leaf = isinstance(module, SpatialScores | PooledEnhancement | DepthwiseConv2d | ExternalLayers)
        return is_leaf or super().is_leaf_module(module, qualified_name)
