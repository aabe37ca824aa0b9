"""What a network begins with, by the size of its images."""

from torch import nn


def stem(size: int, channels: int) -> nn.Sequential:
    """For images of 32, 64 or 224 pixels.

    32: 3x3, so that the first stage sees every pixel; 64: the same with stride 2; 224: that of ImageNet, 7x7 with
    stride 2 and max-pooling. The first stage then has maps of 32, 32 or 56 pixels.
    """
    convolution, *pooling = bare_stem(size, channels)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *pooling)


def bare_stem(size: int, channels: int) -> nn.Sequential:
    """The same without normalisation, for blocks that begin with it."""
    if size == 224:
        return nn.Sequential(_convolution(channels, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(_convolution(channels, 3, stride=first_stride(size)))


def first_stride(size: int) -> int:
    """Of a 3x3 stem: 1 for images of 32 pixels, 2 for larger ones."""
    return 1 if size == 32 else 2


def _convolution(channels: int, kernel: int, *, stride: int) -> nn.Conv2d:
    return nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False)
