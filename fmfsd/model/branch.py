"""The way from a stage's map to a deeper stage's shape (separable branches: Zhang et al. 2019, arXiv:1905.08094)."""

from itertools import pairwise

from torch import nn

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.enhance import SpatialGate


def separable(channels_in: int, channels_out: int, *, stride: int, groups: int) -> nn.Sequential:
    """Depthwise 3x3 and pointwise convolution twice, an enhanced map between; the first has the stride."""
    return nn.Sequential(
        *_half(channels_in, channels_in, stride=stride),
        SpatialGate(groups),
        *_half(channels_in, channels_out, stride=1),
    )


def _half(channels_in: int, channels_out: int, *, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def path(backbone: Backbone, start: int, end: int, *, groups: int) -> nn.Sequential:
    """From stage `start`'s map to stage `end`'s shape: a separable block a stage boundary, a gate between two."""
    layers: list[nn.Module] = []
    for before, after in pairwise(range(start, end + 1)):
        if layers:
            layers.append(SpatialGate(groups))
        stride = backbone.strides[after]
        layers.append(separable(backbone.channels[before], backbone.channels[after], stride=stride, groups=groups))
    return nn.Sequential(*layers)
