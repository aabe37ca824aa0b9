"""Spatial enhancement: how much each position agrees with the map's mean (Li, Hu, Yang 2019, arXiv:1905.09646).

B batch, C channels, G groups, H height, W width.
"""

import torch
from torch import Tensor, nn

from fmfsd.cpu import spatial_kernel

EPSILON = 1e-5


def spatial_scores(map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    """(B, G, H, W): per group, gamma * c + beta, c the standardised agreement with the group's mean.

    The unbiased standard deviation has EPSILON added to it, not to the variance; of one position it counts as 0. Under
    autocast it is computed in fp32, since variance and EPSILON vanish in bf16. C must be divisible by G (ValueError).
    """
    groups = len(gamma_G)
    batch, channels, height, width = map_BCHW.shape
    _require_groups(channels, groups)
    with torch.autocast(map_BCHW.device.type, enabled=False):
        full = at_least_fp32(map_BCHW)
        weighted = full * full.mean(dim=(2, 3), keepdim=True)
        agreement = weighted.view(batch, groups, channels // groups, height, width).sum(dim=2)
        centred = agreement - agreement.mean(dim=(2, 3), keepdim=True)
        deviation = agreement.std(dim=(2, 3), keepdim=True, correction=min(1, height * width - 1))
        slope = gamma_G.view(1, -1, 1, 1) / (deviation + EPSILON)
        return slope * centred + beta_G.view(1, -1, 1, 1)


def spatial_mask(map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    """(B, G, H, W), in (0, 1): the sigmoid of the scores."""
    if spatial_kernel.takes(map_BCHW, gamma_G, beta_G):
        _require_groups(map_BCHW.shape[1], len(gamma_G))
        return spatial_kernel.Mask.apply(map_BCHW, gamma_G, beta_G)
    return torch.sigmoid(spatial_scores(map_BCHW, gamma_G, beta_G))


def spatial_gate(map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    """(B, C, H, W): the map times its own mask."""
    if spatial_kernel.takes(map_BCHW, gamma_G, beta_G):
        _require_groups(map_BCHW.shape[1], len(gamma_G))
        return spatial_kernel.Gated.apply(map_BCHW, gamma_G, beta_G)
    return apply_mask(map_BCHW, spatial_mask(map_BCHW, gamma_G, beta_G))


def _require_groups(channels: int, groups: int) -> None:
    if channels % groups:
        raise ValueError(f"{channels} channels can't be cut into {groups} groups")


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Half-precision values as fp32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def apply_mask(map_BCHW: Tensor, mask_BGHW: Tensor) -> Tensor:
    """Every channel of a group times the group's mask, in the map's type."""
    batch, channels, height, width = map_BCHW.shape
    groups = mask_BGHW.shape[1]
    grouped = map_BCHW.view(batch, groups, channels // groups, height, width)
    return (grouped * mask_BGHW.unsqueeze(2).to(map_BCHW.dtype)).view_as(map_BCHW)


class SpatialScores(nn.Module):
    """A map's scores, with a gamma and a beta a group, which start at 0 and 1: 2 G parameters."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(groups))
        self.beta = nn.Parameter(torch.ones(groups))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> scores (B, G, H, W)."""
        return spatial_scores(map_BCHW, self.gamma, self.beta)


class SpatialEnhancement(SpatialScores):
    """A map's attention mask (the paper's SEM), in (0, 1); every one starts at sigmoid(1) = 0.731."""

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> mask (B, G, H, W)."""
        return spatial_mask(map_BCHW, self.gamma, self.beta)


class SpatialGate(SpatialEnhancement):
    """A map times its own mask (SGE)."""

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return spatial_gate(map_BCHW, self.gamma, self.beta)


class PooledEnhancement(nn.Module):
    """A map's attention mask by a 7x7 convolution over the mean and the largest of its channels (the spatial half of
    CBAM, Woo et al. 2018, arXiv:1807.06521, without its batch norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> mask (B, 1, H, W) in (0, 1); in fp32 at least under autocast."""
        with torch.autocast(map_BCHW.device.type, enabled=False):
            full = at_least_fp32(map_BCHW)
            pooled = torch.cat([full.mean(dim=1, keepdim=True), full.amax(dim=1, keepdim=True)], dim=1)
            return torch.sigmoid(self.convolution(pooled))
