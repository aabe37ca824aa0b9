"""Networks for self-distillation: a backbone with branches, whose heads return logits, shallow to deep."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmfsd.model.activation_checkpointing import checkpoint_activations
from fmfsd.model.backbones.backbone import Backbone, TapPoint, Trunk
from fmfsd.model.branch import BranchType
from fmfsd.model.spatial_enhancement import SpatialGate


class Outputs(NamedTuple):
    """Outputs of a forward pass. K classes, D channels of the deepest feature.

    `logits` has (B, K) per head, shallow to deep, the deepest last; `features` has (B, D) per branch with a feature
    loss, in training only; `deepest_feature` is (B, D).
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


class _BranchedNetwork(nn.Module):
    """Base of the networks. `recomputes`: use activation checkpointing in the branches during training."""

    recomputes = False

    def _run_path(self, path: nn.Module, x: Tensor) -> Tensor:
        return checkpoint_activations(path, x) if self.recomputes and self.training else path(x)


class BranchNetwork(_BranchedNetwork):
    """An unchanged trunk with a branch from each tap to the deepest shape (BYOT). Without taps: the backbone alone."""

    feeds_trunk = False

    def __init__(
        self, backbone: Trunk, taps: Sequence[TapPoint], branch_type: BranchType, *, num_classes: int, features: bool
    ) -> None:
        super().__init__()
        self.backbone, self.taps = backbone, tuple(point.name for point in taps)
        deepest = backbone.deepest
        self.deepest_head = Head(deepest.channels, num_classes)
        self.branches = nn.ModuleList(
            branch_type.build_branch(backbone.steps_between(tap, deepest), tap.channels) for tap in taps
        )
        self.heads = nn.ModuleList(Head(deepest.channels, num_classes) for _ in taps)
        self.projections = _projections(
            len(taps) - branch_type.num_without_feature if features else 0, deepest.channels
        )
        self.head_names = (*_branch_names(len(taps)), "deepest")
        self.head_taps = (*self.taps, deepest.name)

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs."""
        tap_maps: list[Tensor] = []
        deepest_map = self.backbone(images, lambda name, x: self.tap(x, tap_maps) if name in self.taps else x)
        deepest_feature, deepest_logits = self.deepest_head(deepest_map)
        maps = [self._run_path(branch, each) for branch, each in zip(self.branches, tap_maps, strict=True)]
        features, logits = _run_heads(self.heads, maps)
        projected = _project(self.projections, features) if self.training else []
        return Outputs([*logits, deepest_logits], projected, deepest_feature)

    def tap(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """Append the next tap's map `x` to `maps`; return the map from which the trunk continues: `x`."""
        maps.append(x)
        return x


class SideFusionNetwork(_BranchedNetwork):
    """FMFSD with an unchanged trunk: the tapped maps, aligned to the deepest tap's shape, are fused for one more head.

    Every tap but the deepest has its own branch and head, which read its aligned map. The fused head comes between
    these heads and the deepest head: it reads the fusion of the fused map, aligned to the deepest shape, and the
    deepest map.
    """

    feeds_trunk = False
    """True if the trunk continues from the fused map after the last tap."""
    side_head_names: tuple[str, ...] = ()
    """Names of the heads that read the fused map alone."""

    def __init__(
        self,
        backbone: Trunk,
        taps: Sequence[TapPoint],
        branch_type: BranchType,
        fusion: Callable[[int], nn.Module],
        *,
        num_classes: int,
        groups: int,
        features: bool,
    ) -> None:
        """`fusion` builds the fusion module for a number of maps."""
        super().__init__()
        self.backbone, self.taps = backbone, tuple(point.name for point in taps)
        deepest, last, shallow = backbone.deepest, taps[-1], taps[:-1]
        self.gates = nn.ModuleList(SpatialGate(groups) for _ in taps)
        self.alignments = nn.ModuleList(branch_type.path(backbone.steps_between(tap, last)) for tap in taps)
        self.fusion = fusion(len(taps))
        self.deepest_head = Head(deepest.channels, num_classes)
        self.branches = nn.ModuleList(
            branch_type.build_branch(backbone.steps_between(last, deepest), last.channels) for _ in shallow
        )
        self.heads = nn.ModuleList(Head(deepest.channels, num_classes) for _ in shallow)
        self.projections = _projections(len(shallow) if features else 0, deepest.channels)
        self.fused_branch = branch_type.build_fused_branch(backbone.steps_between(last, deepest))
        self.deep_fusion = fusion(2)
        self.side_heads = nn.ModuleList(Head(deepest.channels, num_classes) for _ in self.side_head_names)
        self.fused_head = Head(deepest.channels, num_classes)
        self.head_names = (*_branch_names(len(shallow)), *self.side_head_names, "fused", "deepest")
        self.head_taps = (*self.taps, *(last.name for _ in self.side_head_names), deepest.name)

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs."""
        maps: list[Tensor] = []
        deepest_map = self.backbone(images, lambda name, x: self.tap(x, maps) if name in self.taps else x)
        *aligned, fused = maps
        return self._outputs(aligned, fused, deepest_map)

    def tap(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """Add the next tap's map `x`, enhanced and aligned to the deepest tap, to `maps`; return what feeds the trunk.

        At the last tap the fused map is added too. At every other tap the trunk continues from `x` itself.
        """
        number = len(maps)
        maps.append(self._run_path(self.alignments[number], self.gates[number](x)))
        if number + 1 < len(self.taps):
            return x
        maps.append(self.fusion(maps))
        return maps[-1] if self.feeds_trunk else x

    def _outputs(self, aligned: Sequence[Tensor], fused: Tensor, deepest_map: Tensor) -> Outputs:
        deepest_feature, deepest_logits = self.deepest_head(deepest_map)
        fused_map = self._run_path(self.fused_branch, fused)
        side_logits = [head(fused_map)[1] for head in self.side_heads]
        _, fused_logits = self.fused_head(self.deep_fusion([fused_map, deepest_map]))
        maps = [self._run_path(branch, each) for branch, each in zip(self.branches, aligned, strict=False)]
        features, logits = _run_heads(self.heads, maps)
        projected = _project(self.projections, features) if self.training else []
        return Outputs([*logits, *side_logits, fused_logits, deepest_logits], projected, deepest_feature)


class FusionNetwork(SideFusionNetwork):
    """FMFSD as published: after the last tap the trunk continues from the fused map, its only change."""

    backbone: Backbone
    feeds_trunk = True


class DoubleFusionNetwork(FusionNetwork):
    """FMFSD with one more head, which reads the fused map alone."""

    side_head_names = ("side",)


Network = BranchNetwork | SideFusionNetwork


def _branch_names(count: int) -> list[str]:
    return [f"branch{number}" for number in range(1, count + 1)]


def _projections(count: int, channels: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(channels, channels) for _ in range(count))


def _run_heads(heads: nn.ModuleList, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the features and the logits of each map's head."""
    outputs = [head(each) for head, each in zip(heads, maps, strict=True)]
    return [feature for feature, _ in outputs], [logits for _, logits in outputs]


def _project(projections: nn.ModuleList, features: Sequence[Tensor]) -> list[Tensor]:
    return [projection(feature) for projection, feature in zip(projections, features, strict=False)]


def average_logits(logits_BK: Sequence[Tensor]) -> Tensor:
    """Return the mean of all heads' logits, (B, K)."""
    return torch.stack(tuple(logits_BK)).mean(dim=0)
