"""A backbone with self-distilling branches: images in, one row of logits a head out, shallow to deep."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.branch import path
from fmfsd.model.enhance import SpatialGate
from fmfsd.model.fusion import Fusion


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


class BranchNetwork(nn.Module):
    """An untouched trunk, and from each tap a branch of its own to the deepest shape (BYOT). No taps: the backbone."""

    def __init__(
        self, backbone: Backbone, taps: Sequence[int], *, num_classes: int, groups: int, features: bool
    ) -> None:
        super().__init__()
        self.backbone, self.taps = backbone, tuple(taps)
        deepest, channels = len(backbone.stages) - 1, backbone.channels[-1]
        self.deepest_head = Head(channels, num_classes)
        self.branches = nn.ModuleList(_branch(backbone, tap, deepest, groups) for tap in taps)
        self.heads = nn.ModuleList(Head(channels, num_classes) for _ in taps)
        self.projections = nn.ModuleList(nn.Linear(channels, channels) for _ in taps if features)
        self.head_names = (*(f"branch{number}" for number, _ in enumerate(taps, 1)), "deepest")

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs."""
        x, tapped = self.backbone.stem(images), []
        for number, stage in enumerate(self.backbone.stages):
            x = stage(x)
            if number in self.taps:
                tapped.append(x)
        deepest_feature, deepest_logits = self.deepest_head(x)
        maps = [branch(each) for branch, each in zip(self.branches, tapped, strict=True)]
        features, logits = _heads(self.heads, maps)
        return Outputs([*logits, deepest_logits], self._project(features), deepest_feature)

    def _project(self, features: list[Tensor]) -> list[Tensor]:
        return _project(self.projections, features) if self.training else []


class FusionNetwork(nn.Module):
    """FMFSD: the tapped maps, brought to the deepest tap's shape, are fused; the fused map feeds the next stage.

    Every tap but the deepest has a branch and a head of its own, from its own aligned map. The head between them and
    the deepest one reads the fusion of the fused map, brought to the deepest shape, with the deepest map.
    """

    def __init__(
        self, backbone: Backbone, taps: Sequence[int], *, num_classes: int, groups: int, features: bool
    ) -> None:
        super().__init__()
        self.backbone, self.taps = backbone, tuple(taps)
        deepest, channels, last = len(backbone.stages) - 1, backbone.channels[-1], taps[-1]
        self.gates = nn.ModuleList(SpatialGate(groups) for _ in taps)
        self.alignments = nn.ModuleList(path(backbone, tap, last, groups=groups) for tap in taps)
        self.fusion = Fusion(len(taps), groups)
        self.deepest_head = Head(channels, num_classes)
        self.branches = nn.ModuleList(_branch(backbone, last, deepest, groups) for _ in taps[:-1])
        self.heads = nn.ModuleList(Head(channels, num_classes) for _ in taps[:-1])
        self.projections = nn.ModuleList(nn.Linear(channels, channels) for _ in taps[:-1] if features)
        self.fused_branch = nn.Sequential(path(backbone, last, deepest, groups=groups), SpatialGate(groups))
        self.deep_fusion = Fusion(2, groups)
        self.fused_head = Head(channels, num_classes)
        self.head_names = (*(f"branch{number}" for number, _ in enumerate(taps[:-1], 1)), "fused", "deepest")

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs."""
        aligned, fused = self._shallow(images)
        deepest_map = fused
        for stage in self.backbone.stages[self.taps[-1] + 1 :]:
            deepest_map = stage(deepest_map)
        deepest_feature, deepest_logits = self.deepest_head(deepest_map)
        _, fused_logits = self.fused_head(self.deep_fusion([self.fused_branch(fused), deepest_map]))
        maps = [branch(each) for branch, each in zip(self.branches, aligned, strict=False)]
        features, logits = _heads(self.heads, maps)
        projected = _project(self.projections, features) if self.training else []
        return Outputs([*logits, fused_logits, deepest_logits], projected, deepest_feature)

    def _shallow(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The aligned map of each tap, and their fusion."""
        x, aligned = self.backbone.stem(images), list[Tensor]()
        for number, stage in enumerate(self.backbone.stages[: self.taps[-1] + 1]):
            x = stage(x)
            if number in self.taps:
                x = self.gates[len(aligned)](x)
                aligned.append(self.alignments[len(aligned)](x))
        return aligned, self.fusion(aligned)


def _branch(backbone: Backbone, start: int, deepest: int, groups: int) -> nn.Sequential:
    return nn.Sequential(SpatialGate(groups), path(backbone, start, deepest, groups=groups), SpatialGate(groups))


def _heads(heads: nn.ModuleList, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Features and logits of each map's head."""
    both = [head(each) for head, each in zip(heads, maps, strict=True)]
    return [feature for feature, _ in both], [logits for _, logits in both]


def _project(projections: nn.ModuleList, features: Sequence[Tensor]) -> list[Tensor]:
    return [projection(feature) for projection, feature in zip(projections, features, strict=False)]


def ensemble(logits_BK: Sequence[Tensor]) -> Tensor:
    """The mean of all heads' logits, (B, K)."""
    return torch.stack(tuple(logits_BK)).mean(dim=0)
