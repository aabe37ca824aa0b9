"""Fusion of feature maps by their attention masks (Qin et al. 2025, doi 10.3390/electronics14010182)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fmfsd.model.spatial_enhancement import PooledEnhancement, SpatialEnhancement, SpatialScores, apply_mask

Fuse = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def fuse(maps_BCHW: Sequence[Tensor], masks_BGHW: Sequence[Tensor]) -> Tensor:
    """Return (B, C, H, W): the mean of all maps, each multiplied by the mean of all masks.

    As mean_i(A * P_i) == A * mean_i(P_i) for the averaged mask A, the maps are averaged first: each is read once.
    Raises ValueError unless there is at least one map, and one mask per map.
    """
    _require_one_mask_per_map(maps_BCHW, masks_BGHW)
    return apply_mask(_mean(maps_BCHW), _mean(masks_BGHW))


def fuse_with_own_masks(maps_BCHW: Sequence[Tensor], masks_BGHW: Sequence[Tensor]) -> Tensor:
    """Return (B, C, H, W): the mean of all maps, each multiplied by its own mask; the baseline for averaged masks.

    Raises ValueError as `fuse` does.
    """
    _require_one_mask_per_map(maps_BCHW, masks_BGHW)
    return _mean([apply_mask(each, mask) for each, mask in zip(maps_BCHW, masks_BGHW, strict=True)])


def _require_one_mask_per_map(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    if not maps or len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps and {len(masks)} masks: expected as many masks as maps, at least one")


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(tensors)).mean(dim=0) if len(tensors) > 1 else tensors[0]


class Fusion(nn.Module):
    """Fuses a fixed number of maps of one shape, each with its own enhancement module."""

    def __init__(self, enhancements: Sequence[nn.Module], fuse: Fuse = fuse) -> None:
        super().__init__()
        self.enhancements = nn.ModuleList(enhancements)
        self._fuse = fuse

    @property
    def averages_masks(self) -> bool:
        return self._fuse is fuse

    def masks(self, maps_BCHW: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W) -> one mask (B, G, H, W) per map; for PooledEnhancement, G is 1."""
        return [enhance(each) for enhance, each in zip(self.enhancements, maps_BCHW, strict=True)]

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W) -> the fused map (B, C, H, W)."""
        return self._fuse(maps_BCHW, self.masks(maps_BCHW))


class SoftmaxFusion(nn.Module):
    """A weighted sum of maps of one shape; the weights at each position and group are a softmax over the maps.

    The softmax over branches is from selective kernels (Li et al. 2019, arXiv:1903.06586), which weight whole channels;
    the scores are those of spatial enhancement.
    """

    averages_masks = False

    def __init__(self, scores: Sequence[nn.Module]) -> None:
        super().__init__()
        self.scores = nn.ModuleList(scores)

    def masks(self, maps_BCHW: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W) -> one weight mask (B, G, H, W) per map; they sum to 1 over the maps."""
        scores = [score(each) for score, each in zip(self.scores, maps_BCHW, strict=True)]
        weights = torch.stack(scores).softmax(dim=0)
        return [weights[number] for number in range(len(scores))]

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W) -> the fused map (B, C, H, W)."""
        masks = self.masks(maps_BCHW)
        return torch.stack([apply_mask(each, mask) for each, mask in zip(maps_BCHW, masks, strict=True)]).sum(dim=0)


class MeanFusion(nn.Module):
    """The mean of maps of one shape, without masks."""

    averages_masks = False

    def masks(self, _maps_BCHW: Sequence[Tensor]) -> list[Tensor]:
        return []

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W) -> the fused map (B, C, H, W)."""
        return _mean(maps_BCHW)


def build_fusion(num_maps: int, *, sem: str, masks: str, groups: int) -> nn.Module:
    """Build the fusion module of `num_maps` maps.

    `sem`: sge, cbam, softmax or none; `masks`, for sge and cbam: averaged or own; `groups`: those of spatial
    enhancement.
    """
    combine = fuse if masks == "averaged" else fuse_with_own_masks
    forms: dict[str, Callable[[], nn.Module]] = {
        "sge": lambda: Fusion([SpatialEnhancement(groups) for _ in range(num_maps)], combine),
        "cbam": lambda: Fusion([PooledEnhancement() for _ in range(num_maps)], combine),
        "softmax": lambda: SoftmaxFusion([SpatialScores(groups) for _ in range(num_maps)]),
        "none": MeanFusion,
    }
    return forms[sem]()
