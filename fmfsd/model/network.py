"""A backbone with self-distilling branches: images in, one row of logits a head out, shallow to deep."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmfsd.model.activation_checkpointing import recomputed
from fmfsd.model.backbones.backbone import Backbone, Place, Trunk
from fmfsd.model.branch import BranchForm
from fmfsd.model.spatial_enhancement import SpatialGate


class Outputs(NamedTuple):
    """What a forward pass gives, K classes, D channels of the deepest feature.

    `logits` has (B, K) a head, shallow to deep, the deepest last; `features` (B, D) a branch with a feature loss,
    while training; `deepest_feature` (B, D).
    """

    logits: list[Tensor]
    features: list[Tensor]
    deepest_feature: Tensor


class Head(nn.Module):
    """Global average pooling, then a linear classifier: (B, D, H, W) -> feature (B, D), logits (B, K)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, map_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        feature_BD = map_BDHW.mean(dim=(2, 3))
        return feature_BD, self.classifier(feature_BD)


class _Branching(nn.Module):
    """What both kinds of networks have.

    `recomputes`: in training the paths of branches compute their inner maps again for the backward pass.
    """

    recomputes = False

    def _along(self, path: nn.Module, x: Tensor) -> Tensor:
        return recomputed(path, x) if self.recomputes and self.training else path(x)


class BranchNetwork(_Branching):
    """An untouched trunk, and from each tap a branch of its own to the deepest shape (BYOT). No taps: the backbone."""

    feeds_trunk = False

    def __init__(
        self, backbone: Trunk, taps: Sequence[Place], form: BranchForm, *, num_classes: int, features: bool
    ) -> None:
        super().__init__()
        self.backbone, self.taps = backbone, tuple(place.name for place in taps)
        deepest = backbone.deepest
        self.deepest_head = Head(deepest.channels, num_classes)
        self.branches = nn.ModuleList(form.branch(backbone.way(tap, deepest), tap.channels) for tap in taps)
        self.heads = nn.ModuleList(Head(deepest.channels, num_classes) for _ in taps)
        self.projections = _projections(len(taps) - form.num_without_feature if features else 0, deepest.channels)
        self.head_names = (*_branch_names(len(taps)), "deepest")
        self.head_places = (*self.taps, deepest.name)

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs."""
        tapped: list[Tensor] = []
        deepest_map = self.backbone(images, lambda place, x: self.tap(x, tapped) if place in self.taps else x)
        deepest_feature, deepest_logits = self.deepest_head(deepest_map)
        maps = [self._along(branch, each) for branch, each in zip(self.branches, tapped, strict=True)]
        features, logits = _heads(self.heads, maps)
        projected = _project(self.projections, features) if self.training else []
        return Outputs([*logits, deepest_logits], projected, deepest_feature)

    def tap(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """What goes on behind the next tap, whose map `x` is added to `maps`."""
        maps.append(x)
        return x


class SideFusionNetwork(_Branching):
    """FMFSD beside an untouched trunk: the tapped maps, brought to the deepest tap's shape, are fused for a head.

    Every tap but the deepest has a branch and a head of its own, from its own aligned map. The head between them and
    the deepest one reads the fusion of the fused map, brought to the deepest shape, with the deepest map.
    """

    feeds_trunk = False
    """Whether the trunk continues from the fused map after the last tap."""
    beside: tuple[str, ...] = ()
    """Heads that read the fused map alone."""

    def __init__(
        self,
        backbone: Trunk,
        taps: Sequence[Place],
        form: BranchForm,
        fusion: Callable[[int], nn.Module],
        *,
        num_classes: int,
        groups: int,
        features: bool,
    ) -> None:
        """`fusion` makes one of so many maps."""
        super().__init__()
        self.backbone, self.taps = backbone, tuple(place.name for place in taps)
        deepest, last, shallow = backbone.deepest, taps[-1], taps[:-1]
        self.gates = nn.ModuleList(SpatialGate(groups) for _ in taps)
        self.alignments = nn.ModuleList(form.path(backbone.way(tap, last)) for tap in taps)
        self.fusion = fusion(len(taps))
        self.deepest_head = Head(deepest.channels, num_classes)
        self.branches = nn.ModuleList(form.branch(backbone.way(last, deepest), last.channels) for _ in shallow)
        self.heads = nn.ModuleList(Head(deepest.channels, num_classes) for _ in shallow)
        self.projections = _projections(len(shallow) if features else 0, deepest.channels)
        self.fused_branch = form.fused(backbone.way(last, deepest))
        self.deep_fusion = fusion(2)
        self.side_heads = nn.ModuleList(Head(deepest.channels, num_classes) for _ in self.beside)
        self.fused_head = Head(deepest.channels, num_classes)
        self.head_names = (*_branch_names(len(shallow)), *self.beside, "fused", "deepest")
        self.head_places = (*self.taps, *(last.name for _ in self.beside), deepest.name)

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs."""
        maps: list[Tensor] = []
        deepest_map = self.backbone(images, lambda place, x: self.tap(x, maps) if place in self.taps else x)
        *aligned, fused = maps
        return self._outputs(aligned, fused, deepest_map)

    def tap(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """Add the next tap's map `x`, enhanced and aligned to the deepest tap, to `maps`; return what feeds the trunk.

        At the last tap the fused map is added too. At every other tap the trunk continues from `x` itself.
        """
        number = len(maps)
        maps.append(self._along(self.alignments[number], self.gates[number](x)))
        if number + 1 < len(self.taps):
            return x
        maps.append(self.fusion(maps))
        return maps[-1] if self.feeds_trunk else x

    def _outputs(self, aligned: Sequence[Tensor], fused: Tensor, deepest_map: Tensor) -> Outputs:
        deepest_feature, deepest_logits = self.deepest_head(deepest_map)
        fused_map = self._along(self.fused_branch, fused)
        beside = [head(fused_map)[1] for head in self.side_heads]
        _, fused_logits = self.fused_head(self.deep_fusion([fused_map, deepest_map]))
        maps = [self._along(branch, each) for branch, each in zip(self.branches, aligned, strict=False)]
        features, logits = _heads(self.heads, maps)
        projected = _project(self.projections, features) if self.training else []
        return Outputs([*logits, *beside, fused_logits, deepest_logits], projected, deepest_feature)


class FusionNetwork(SideFusionNetwork):
    """FMFSD as published: the fused map feeds what follows the last tap, which is the only change to the trunk."""

    backbone: Backbone
    feeds_trunk = True


class DoubleFusionNetwork(FusionNetwork):
    """FMFSD with one more head, that reads the fused map before it meets the deepest one."""

    beside = ("side",)


Network = BranchNetwork | SideFusionNetwork


def _branch_names(count: int) -> list[str]:
    return [f"branch{number}" for number in range(1, count + 1)]


def _projections(count: int, channels: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(channels, channels) for _ in range(count))


def _heads(heads: nn.ModuleList, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Features and logits of each map's head."""
    both = [head(each) for head, each in zip(heads, maps, strict=True)]
    return [feature for feature, _ in both], [logits for _, logits in both]


def _project(projections: nn.ModuleList, features: Sequence[Tensor]) -> list[Tensor]:
    return [projection(feature) for projection, feature in zip(projections, features, strict=False)]


def ensemble(logits_BK: Sequence[Tensor]) -> Tensor:
    """The mean of all heads' logits, (B, K)."""
    return torch.stack(tuple(logits_BK)).mean(dim=0)
