"""ResNets (He et al. 2015, arXiv:1512.03385) and ResNeXt (Xie et al. 2016, arXiv:1611.05431), torchvision's blocks."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.stem import build_stem

Block = Callable[..., nn.Module]

_BLOCKS: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
_WIDTHS = (64, 128, 256, 512)


def imagenet_style_resnet(size: int, *, depth: int) -> Backbone:
    """ResNet-18, -34, -50, -101 or -152: stages of 64 to 512 channels, four times as many with bottlenecks."""
    block, counts = _BLOCKS[depth]
    return _resnet(size, block, counts, _WIDTHS, expansion=block.expansion)  # type: ignore[attr-defined]


def resnext50(size: int) -> Backbone:
    """ResNeXt-50 (32x4d): ResNet-50 whose 3x3 convolutions have 32 groups, of 4 channels in the first stage."""
    _, counts = _BLOCKS[50]
    return _resnet(size, partial(Bottleneck, groups=32, base_width=4), counts, _WIDTHS, expansion=Bottleneck.expansion)


def cifar_resnet(size: int, *, depth: int) -> Backbone:
    """ResNet-8, -20, -32, ... (depth 6n + 2): three stages of 16, 32 and 64 channels.

    A shortcut that changes shape is a 1x1 convolution (He et al.'s option B), as in the distillation literature.
    """
    assert depth % 6 == 2, depth
    return _resnet(size, BasicBlock, ((depth - 2) // 6,) * 3, (16, 32, 64), expansion=1)


def _resnet(size: int, block: Block, counts: Sequence[int], widths: Sequence[int], *, expansion: int) -> Backbone:
    strides = (1, *(2 for _ in widths[1:]))
    outputs = [width * expansion for width in widths]
    stages = [
        _blocks(partial(block, planes=width), count, channels_in, channels, stride)
        for width, count, channels_in, channels, stride in zip(
            widths, counts, (widths[0], *outputs), outputs, strides, strict=False
        )
    ]
    channels = [[width] * count for width, count in zip(outputs, counts, strict=True)]
    return Backbone(build_stem(size, widths[0]), stages, channels, strides)


def _blocks(block: Block, count: int, channels_in: int, channels: int, stride: int) -> list[nn.Module]:
    shortcut = None
    if stride != 1 or channels_in != channels:
        shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    first = block(inplanes=channels_in, stride=stride, downsample=shortcut)
    return [first, *(block(inplanes=channels) for _ in range(count - 1))]
