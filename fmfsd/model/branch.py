"""Branch layers from a tapped map to a deeper shape: separable convolutions, a bottleneck, or attention."""

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


class LabelledLayers(nn.Sequential):
    """A sequence of layers with a readable label, such as `sepconv 64 /2`."""

    def __init__(self, label: str, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.label = label


def iterate_labelled_layers(path: nn.Module, name: str) -> Iterator[tuple[str, str]]:
    """Yield the label of each labelled layer of `path`, in order, and its module name below `name`."""
    if isinstance(path, LabelledLayers | AttentionGate):
        yield path.label, name
        return
    for child_name, child in path.named_children():
        yield from iterate_labelled_layers(child, f"{name}.{child_name}")


@dataclass(frozen=True)
class BranchType:
    """A branch type. `path` builds layers for a sequence of steps (no layers for no steps).

    A branch has `entry` layers (built from the map's channels) before the path and `exit` layers after it.
    """

    path: Callable[[Sequence[Step]], nn.Sequential]
    entry: Callable[[int], Layers] = lambda _channels: []
    exit: Callable[[], Layers] = list
    num_without_feature: int = 0
    """In a network without fusion, the number of deepest branches that have no feature loss."""

    def build_branch(self, steps: Sequence[Step], channels: int) -> nn.Sequential:
        """Build a branch from a map of `channels` channels along `steps`."""
        return nn.Sequential(*self.entry(channels), self.path(steps), *self.exit())

    def build_fused_branch(self, steps: Sequence[Step]) -> nn.Sequential:
        """Build the branch from the fused map along `steps`."""
        return nn.Sequential(self.path(steps), *self.exit())


def build_branch_type(name: str, *, groups: int) -> BranchType:
    """Return the branch type `sepconv`, `bottleneck` or `attention`; `groups` are those of spatial enhancement."""

    def gate() -> Layers:
        return [SpatialGate(groups)]

    forms = {
        "sepconv": BranchType(lambda steps: _separable_path(steps, gate), lambda _channels: gate(), gate),
        "bottleneck": BranchType(_bottleneck_path),
        "attention": BranchType(
            lambda steps: _separable_path(steps, list),
            lambda channels: [AttentionGate(channels)],
            num_without_feature=1,
        ),
    }
    return forms[name]


def _separable_path(steps: Sequence[Step], gate: Callable[[], Layers]) -> nn.Sequential:
    """Build one separable block per step, with a gate between blocks."""
    layers: Layers = []
    for step in steps:
        layers += [*(gate() if layers else []), separable_block(step, gate)]
    return nn.Sequential(*layers)


def separable_block(step: Step, gate: Callable[[], Layers]) -> nn.Sequential:
    """Build a separable block: depthwise 3x3 and pointwise convolution, twice, with a gate in between.

    Zhang et al. 2022 (doi 10.1109/TPAMI.2021.3067100). The first depthwise convolution has the stride.
    """
    return LabelledLayers(
        _label("sepconv", step.channels_out, step.stride),
        *_separable_convolution(step.channels_in, step.channels_in, stride=step.stride),
        *gate(),
        *_separable_convolution(step.channels_in, step.channels_out, stride=1),
    )


def _separable_convolution(channels_in: int, channels_out: int, *, stride: int) -> Layers:
    return [DepthwiseConv2d(channels_in, stride), *_with_norm(nn.Conv2d(channels_in, channels_out, 1, bias=False))]


def _with_norm(convolution: nn.Conv2d) -> Layers:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


def _bottleneck_path(steps: Sequence[Step]) -> nn.Sequential:
    """Build one bottleneck for all steps (Zhang et al. 2019, arXiv:1905.08094).

    It reduces to a quarter of the channels, applies a convolution whose kernel and stride equal the total stride, and
    expands again.
    """
    if not steps:
        return nn.Sequential()
    stride, channels = math.prod(step.stride for step in steps), steps[-1].channels_out
    narrow = max(1, channels // 4)
    return LabelledLayers(
        _label("bottleneck", channels, stride),
        *_with_norm(nn.Conv2d(steps[0].channels_in, narrow, 1, bias=False)),
        *_with_norm(nn.Conv2d(narrow, narrow, stride, stride, bias=False)),
        *_with_norm(nn.Conv2d(narrow, channels, 1, bias=False)),
    )


def _label(kind: str, channels: int, stride: int) -> str:
    return f"{kind} {channels}{f' /{stride}' if stride > 1 else ''}"


class AttentionGate(nn.Module):
    """Multiplies a map by a mask of its shape: a separable block at half resolution, upsampled.

    Zhang et al. 2022 (doi 10.1109/TPAMI.2021.3067100).
    """

    label = "attention"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask = separable_block(Step(channels, channels, 2), list)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mask = F.interpolate(self.mask(map_BCHW), map_BCHW.shape[-2:], mode="bilinear", align_corners=False)
        return map_BCHW * torch.sigmoid(mask)
