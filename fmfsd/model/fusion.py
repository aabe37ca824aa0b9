"""Fusion of feature maps by their averaged attention mask (Qin et al. 2025, doi 10.3390/electronics14010182)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fmfsd.model.enhance import SpatialEnhancement, apply_mask


def fuse(maps_BCHW: Sequence[Tensor], masks_BGHW: Sequence[Tensor]) -> Tensor:
    """(B, C, H, W): the mean of all maps, each under the mean of all masks.

    As mean_i(A * P_i) == A * mean_i(P_i) for the averaged mask A, the maps are averaged first: each is read once.
    Raises ValueError unless there is one mask a map and at least one map.
    """
    if not maps_BCHW or len(maps_BCHW) != len(masks_BGHW):
        raise ValueError(
            f"{len(maps_BCHW)} maps and {len(masks_BGHW)} masks: expected as many masks as maps, at least one"
        )
    return apply_mask(_mean(maps_BCHW), _mean(masks_BGHW))


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(tensors)).mean(dim=0) if len(tensors) > 1 else tensors[0]


class Fusion(nn.Module):
    """Fuses a fixed number of maps of one shape; each has an enhancement of its own."""

    def __init__(self, num_maps: int, groups: int) -> None:
        super().__init__()
        self.enhancements = nn.ModuleList(SpatialEnhancement(groups) for _ in range(num_maps))

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """A list of (B, C, H, W) -> (B, C, H, W)."""
        masks = [enhance(each) for enhance, each in zip(self.enhancements, maps_BCHW, strict=True)]
        return fuse(maps_BCHW, masks)
