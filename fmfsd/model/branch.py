"""The way from a tapped map to a deeper shape, in the forms that the literature gives it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmfsd.cpu.depthwise import DepthwiseConv2d
from fmfsd.model.backbones.backbone import Step
from fmfsd.model.spatial_enhancement import SpatialGate

Layers = list[nn.Module]


class Named(nn.Sequential):
    """Layers, one after another, that people have one name for."""

    def __init__(self, label: str, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.label = label


def named_layers(path: nn.Module, name: str) -> Iterator[tuple[str, str]]:
    """What people call the layers of `path`, in order, and where they are below `name`."""
    if isinstance(path, Named | AttentionGate):
        yield path.label, name
        return
    for below, child in path.named_children():
        yield from named_layers(child, f"{name}.{below}")


@dataclass(frozen=True)
class BranchForm:
    """`path` leads along a way, and is empty for an empty one; a branch has `entry` (of a map's channels) before it and
    `exit` behind it."""

    path: Callable[[Sequence[Step]], nn.Sequential]
    entry: Callable[[int], Layers] = lambda _channels: []
    exit: Callable[[], Layers] = list
    num_without_feature: int = 0
    """Of a network without fusion, how many branches next to the deepest head have no feature loss."""

    def branch(self, way: Sequence[Step], channels: int) -> nn.Sequential:
        """From a map of these channels along `way`."""
        return nn.Sequential(*self.entry(channels), self.path(way), *self.exit())

    def fused(self, way: Sequence[Step]) -> nn.Sequential:
        """From the fused map along `way`."""
        return nn.Sequential(self.path(way), *self.exit())


def branch_form(name: str, *, groups: int) -> BranchForm:
    """`sepconv`, `bottleneck` or `attention`; `groups` are those of spatial enhancement."""

    def gate() -> Layers:
        return [SpatialGate(groups)]

    forms = {
        "sepconv": BranchForm(lambda way: _separable_path(way, gate), lambda _channels: gate(), gate),
        "bottleneck": BranchForm(_bottleneck_path),
        "attention": BranchForm(
            lambda way: _separable_path(way, list), lambda channels: [AttentionGate(channels)], num_without_feature=1
        ),
    }
    return forms[name]


def _separable_path(way: Sequence[Step], gate: Callable[[], Layers]) -> nn.Sequential:
    """A separable block a step, a gate between two."""
    layers: Layers = []
    for step in way:
        layers += [*(gate() if layers else []), separable(step, gate)]
    return nn.Sequential(*layers)


def separable(step: Step, gate: Callable[[], Layers]) -> nn.Sequential:
    """Depthwise 3x3 and pointwise convolution twice (Zhang et al. 2022, doi 10.1109/TPAMI.2021.3067100), an enhanced
    map between; the first has the stride."""
    return Named(
        _label("sepconv", step.channels_out, step.stride),
        *_half(step.channels_in, step.channels_in, stride=step.stride),
        *gate(),
        *_half(step.channels_in, step.channels_out, stride=1),
    )


def _half(channels_in: int, channels_out: int, *, stride: int) -> Layers:
    return [DepthwiseConv2d(channels_in, stride), *_normalised(nn.Conv2d(channels_in, channels_out, 1, bias=False))]


def _normalised(convolution: nn.Conv2d) -> Layers:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


def _bottleneck_path(way: Sequence[Step]) -> nn.Sequential:
    """The whole way by one bottleneck (Zhang et al. 2019, arXiv:1905.08094): to a quarter of the channels, a
    convolution whose kernel and stride are the whole reduction, and back."""
    if not way:
        return nn.Sequential()
    stride, channels = math.prod(step.stride for step in way), way[-1].channels_out
    narrow = max(1, channels // 4)
    return Named(
        _label("bottleneck", channels, stride),
        *_normalised(nn.Conv2d(way[0].channels_in, narrow, 1, bias=False)),
        *_normalised(nn.Conv2d(narrow, narrow, stride, stride, bias=False)),
        *_normalised(nn.Conv2d(narrow, channels, 1, bias=False)),
    )


def _label(kind: str, channels: int, stride: int) -> str:
    return f"{kind} {channels}{f' /{stride}' if stride > 1 else ''}"


class AttentionGate(nn.Module):
    """A map times a mask of its own shape, made by a separable block at half its side and enlarged (Zhang et al. 2022,
    doi 10.1109/TPAMI.2021.3067100)."""

    label = "attention"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask = separable(Step(channels, channels, 2), list)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mask = F.interpolate(self.mask(map_BCHW), map_BCHW.shape[-2:], mode="bilinear", align_corners=False)
        return map_BCHW * torch.sigmoid(mask)
