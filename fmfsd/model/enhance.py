"""Spatial enhancement: how much each position agrees with the map's mean (Li, Hu, Yang 2019, arXiv:1905.09646).

B batch, C channels, G groups, H height, W width.
"""

import torch
from torch import Tensor, nn

EPSILON = 1e-5


def spatial_mask(map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    """(B, G, H, W) in (0, 1): per group, sigmoid(gamma * c + beta), c the standardised agreement with the group's mean.

    The unbiased standard deviation has EPSILON added to it, not to the variance; of one position it counts as 0. Under
    autocast it is computed in fp32, since variance and EPSILON vanish in bf16. C must be divisible by G (ValueError).
    """
    groups = len(gamma_G)
    batch, channels, height, width = map_BCHW.shape
    if channels % groups:
        raise ValueError(f"{channels} channels can't be cut into {groups} groups")
    with torch.autocast(map_BCHW.device.type, enabled=False):
        full = map_BCHW.float() if map_BCHW.dtype in (torch.bfloat16, torch.float16) else map_BCHW
        weighted = full * full.mean(dim=(2, 3), keepdim=True)
        agreement = weighted.view(batch, groups, channels // groups, height, width).sum(dim=2)
        centred = agreement - agreement.mean(dim=(2, 3), keepdim=True)
        deviation = agreement.std(dim=(2, 3), keepdim=True, correction=min(1, height * width - 1))
        slope = gamma_G.view(1, -1, 1, 1) / (deviation + EPSILON)
        return torch.sigmoid(slope * centred + beta_G.view(1, -1, 1, 1))


def apply_mask(map_BCHW: Tensor, mask_BGHW: Tensor) -> Tensor:
    """Every channel of a group times the group's mask, in the map's type."""
    batch, channels, height, width = map_BCHW.shape
    groups = mask_BGHW.shape[1]
    grouped = map_BCHW.view(batch, groups, channels // groups, height, width)
    return (grouped * mask_BGHW.unsqueeze(2).to(map_BCHW.dtype)).view_as(map_BCHW)


class SpatialEnhancement(nn.Module):
    """A map's attention mask (the paper's SEM), with a gamma and a beta a group: 2 G parameters.

    They start at 0 and 1, so every mask starts at sigmoid(1) = 0.731.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(groups))
        self.beta = nn.Parameter(torch.ones(groups))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> mask (B, G, H, W)."""
        return spatial_mask(map_BCHW, self.gamma, self.beta)


class SpatialGate(SpatialEnhancement):
    """A map times its own mask (SGE)."""

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return apply_mask(map_BCHW, super().forward(map_BCHW))
