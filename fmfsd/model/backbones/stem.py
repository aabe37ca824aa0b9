"""Stems of backbones, by image size."""

from torch import nn


def build_stem(size: int, channels: int) -> nn.Sequential:
    """Return the stem for images of 32, 64 or 224 pixels.

    32: a 3x3 convolution at full resolution; 64: the same with stride 2; 224: the ImageNet stem, a 7x7 convolution with
    stride 2 and max-pooling. The maps of the first stage then have a side of 32, 32 or 56 pixels.
    """
    convolution, *pooling = build_bare_stem(size, channels)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *pooling)


def build_bare_stem(size: int, channels: int) -> nn.Sequential:
    """Return the stem without batch norm and ReLU, for blocks that start with them."""
    if size == 224:
        return nn.Sequential(_convolution(channels, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(_convolution(channels, 3, stride=first_stride(size)))


def first_stride(size: int) -> int:
    """Return the stride of a 3x3 stem: 1 for images of 32 pixels, 2 for larger ones."""
    return 1 if size == 32 else 2


def _convolution(channels: int, kernel: int, *, stride: int) -> nn.Conv2d:
    return nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False)
