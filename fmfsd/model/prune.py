"""The smallest network for one head: for inference, and to tell what a head costs."""

import copy

from torch import Tensor, fx, nn

from fmfsd.cpu.depthwise import DepthwiseConv2d
from fmfsd.model.backbones.backbone import Foreign
from fmfsd.model.network import Network, ensemble
from fmfsd.model.spatial_enhancement import PooledEnhancement, SpatialScores

ENSEMBLE = "ensemble"


def prune(network: Network, head: str = "deepest") -> fx.GraphModule:
    """Images (B, 3, H, W) to the logits (B, K) of `head`, one of `network.head_names` or `ensemble`; for inference.

    It has copies of the layers that the head needs, by their names in `network`, and no others; its results are those
    of `network` in evaluation, bit for bit. Raises ValueError if there is no such head.
    """
    if head not in (*network.head_names, ENSEMBLE):
        raise ValueError(f"there is no head {head!r}; there are {', '.join((*network.head_names, ENSEMBLE))}")
    return pruned(_OneHead(copy.deepcopy(network).eval(), head))


def pruned(whole: nn.Module) -> fx.GraphModule:
    """What `whole` computes from images, as a graph that has the layers it needs and no others."""
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
        return ensemble(logits) if self._head == ENSEMBLE else logits[self.network.head_names.index(self._head)]


class _Tracer(fx.Tracer):
    """Follows everything but what looks at the shape or the kind of its input, or may."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        whole = isinstance(module, SpatialScores | PooledEnhancement | DepthwiseConv2d | Foreign)
        return whole or super().is_leaf_module(module, qualified_name)
