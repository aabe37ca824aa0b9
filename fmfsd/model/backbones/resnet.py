"""ResNets (He et al. 2015, arXiv:1512.03385) of torchvision's blocks under a stem for the size of the images."""

from collections.abc import Sequence

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.stem import stem

Block = type[BasicBlock] | type[Bottleneck]

_BLOCKS: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


def imagenet_style_resnet(size: int, *, depth: int) -> Backbone:
    """ResNet-18, -34 or -50 with stages of 64 to 512 channels."""
    block, counts = _BLOCKS[depth]
    return _resnet(size, block, counts, widths=(64, 128, 256, 512))


def cifar_resnet(size: int, *, depth: int) -> Backbone:
    """ResNet-8, -20, ... (depth 6n + 2): three stages of 16, 32 and 64 channels.

    A shortcut that changes shape is a 1x1 convolution (He et al.'s option B), as in the distillation literature.
    """
    assert depth % 6 == 2, depth
    return _resnet(size, BasicBlock, ((depth - 2) // 6,) * 3, widths=(16, 32, 64))


def _resnet(size: int, block: Block, counts: Sequence[int], *, widths: Sequence[int]) -> Backbone:
    strides = (1, *(2 for _ in widths[1:]))
    outputs = [width * block.expansion for width in widths]
    stages = [
        _blocks(block, count, channels_in=channels_in, width=width, stride=stride)
        for count, channels_in, width, stride in zip(counts, (widths[0], *outputs), widths, strides, strict=False)
    ]
    channels = [[width] * count for width, count in zip(outputs, counts, strict=True)]
    return Backbone(stem(size, widths[0]), stages, channels, strides)


def _blocks(block: Block, count: int, *, channels_in: int, width: int, stride: int) -> list[nn.Module]:
    channels = width * block.expansion
    shortcut = None
    if stride != 1 or channels_in != channels:
        shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    return [block(channels_in, width, stride, shortcut), *(block(channels, width) for _ in range(count - 1))]
