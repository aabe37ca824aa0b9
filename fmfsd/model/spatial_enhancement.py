"""Spatial enhancement: attention masks from each position's similarity to the map's mean (Li et al. 2019,
arXiv:1905.09646).

B batch, C channels, G groups, H height, W width.
"""

import torch
from torch import Tensor, nn

from fmfsd.cpu import spatial_kernel

EPSILON = 1e-5


def spatial_scores(map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    """Return (B, G, H, W): per group, gamma * c + beta, where c is the standardised similarity to the group's mean.

    EPSILON is added to the unbiased standard deviation, not to the variance; the deviation of a single position is 0.
    Computed in fp32 under autocast, since variance and EPSILON vanish in bf16. Raises ValueError unless C is divisible
    by G.
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
    """Return the mask (B, G, H, W) in (0, 1): the sigmoid of the scores."""
    if spatial_kernel.supports(map_BCHW, gamma_G, beta_G):
        _require_groups(map_BCHW.shape[1], len(gamma_G))
        return spatial_kernel.MaskFunction.apply(map_BCHW, gamma_G, beta_G)
    return torch.sigmoid(spatial_scores(map_BCHW, gamma_G, beta_G))


def spatial_gate(map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    """Return (B, C, H, W): the map times its own mask."""
    if spatial_kernel.supports(map_BCHW, gamma_G, beta_G):
        _require_groups(map_BCHW.shape[1], len(gamma_G))
        return spatial_kernel.GateFunction.apply(map_BCHW, gamma_G, beta_G)
    return apply_mask(map_BCHW, spatial_mask(map_BCHW, gamma_G, beta_G))


def _require_groups(channels: int, groups: int) -> None:
    if channels % groups:
        raise ValueError(f"{channels} channels can't be divided into {groups} groups")


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return half-precision tensors as fp32, others unchanged."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def apply_mask(map_BCHW: Tensor, mask_BGHW: Tensor) -> Tensor:
    """Multiply every channel of a group by the group's mask, in the map's dtype."""
    batch, channels, height, width = map_BCHW.shape
    groups = mask_BGHW.shape[1]
    grouped = map_BCHW.view(batch, groups, channels // groups, height, width)
    return (grouped * mask_BGHW.unsqueeze(2).to(map_BCHW.dtype)).view_as(map_BCHW)


class SpatialScores(nn.Module):
    """Spatial scores with a learned gamma (initially 0) and beta (initially 1) per group: 2 G parameters."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(groups))
        self.beta = nn.Parameter(torch.ones(groups))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> scores (B, G, H, W)."""
        return spatial_scores(map_BCHW, self.gamma, self.beta)


class SpatialEnhancement(SpatialScores):
    """The attention mask of a map (the paper's SEM), in (0, 1); initially sigmoid(1) = 0.731 everywhere."""

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> mask (B, G, H, W)."""
        return spatial_mask(map_BCHW, self.gamma, self.beta)


class SpatialGate(SpatialEnhancement):
    """A map times its own mask (SGE)."""

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return spatial_gate(map_BCHW, self.gamma, self.beta)


class PooledEnhancement(nn.Module):
    """An attention mask from a 7x7 convolution over the channel mean and channel maximum: the spatial part of CBAM.

    Woo et al. 2018 (arXiv:1807.06521), without its batch norm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> mask (B, 1, H, W) in (0, 1); computed in fp32 or fp64, also under autocast."""
        with torch.autocast(map_BCHW.device.type, enabled=False):
            full = at_least_fp32(map_BCHW)
            pooled = torch.cat([full.mean(dim=1, keepdim=True), full.amax(dim=1, keepdim=True)], dim=1)
            return torch.sigmoid(self.convolution(pooled))
