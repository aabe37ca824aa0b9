"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) and V3 (Howard et al. 2019, arXiv:1905.02244), torchvision's.

Their first block, with 16 channels, belongs to the stem, so that the first stage has 24 channels. For images of 224
pixels the first stage has stride 2, as published; for smaller ones stride 1, as is usual for CIFAR.
"""

from collections.abc import Sequence

from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.stem import first_stride

V2_CHANNELS = ((24,) * 2, (32,) * 3, (64,) * 4 + (96,) * 3, (160,) * 3 + (320, 1280))
V3_CHANNELS = ((24,) * 2, (40,) * 3, (80,) * 4 + (112,) * 2, (160,) * 3 + (960,))


def mobilenetv2(size: int) -> Backbone:
    """MobileNetV2: stages with 24, 32, 96 and 1280 channels; the last block is the final 1x1 convolution."""
    return _build(size, mobilenet_v2(num_classes=1).features, V2_CHANNELS)


def mobilenetv3_large(size: int) -> Backbone:
    """MobileNetV3-Large: stages with 24, 40, 112 and 960 channels; the last block is the final 1x1 convolution.

    The 1280-channel hidden layer of V3's classifier is left out: the network's heads are linear.
    """
    return _build(size, mobilenet_v3_large(num_classes=1).features, V3_CHANNELS)


def _build(size: int, layers: Sequence[nn.Module], channels: Sequence[Sequence[int]]) -> Backbone:
    first, second, *rest = layers
    _set_stride(first, first_stride(size))
    _set_stride(rest[0], 2 if size == 224 else 1)
    blocks = iter(rest)
    stages = [[next(blocks) for _ in counts] for counts in channels]
    return Backbone(nn.Sequential(first, second), stages, channels, strides=(2 if size == 224 else 1, 2, 2, 2))


def _set_stride(block: nn.Module, stride: int) -> None:
    """Set the stride of the block's only strided convolution."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            module.stride = (stride, stride)
