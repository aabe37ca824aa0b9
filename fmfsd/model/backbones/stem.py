"""What a network begins with, by the size of its images."""

from torch import nn


def stem(size: int, channels: int) -> nn.Sequential:
    """For images of 32, 64 or 224 pixels.

    32: 3x3, so that the first stage sees every pixel; 64: the same with stride 2; 224: that of ImageNet, 7x7 with
    stride 2 and max-pooling. The first stage then has maps of 32, 32 or 56 pixels.
    """
    if size == 224:
        return nn.Sequential(*_convolved(channels, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*_convolved(channels, 3, stride=size // 32))


def _convolved(channels: int, kernel: int, *, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
