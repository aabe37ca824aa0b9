"""SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360), torchvision's blocks. It has no batch normalisation."""

from torch import nn
from torchvision.models import squeezenet1_1

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.stem import first_stride

CHANNELS = ((128, 128), (256, 256), (384, 384), (512, 512))


def squeezenet(size: int) -> Backbone:
    """Four stages of two fire modules; the second and third start with max-pooling, the last has stride 1.

    For images of 224 pixels it has its original stem, but padded by 1, so that the sides of maps divide an image's: 56,
    28 and 14 pixels instead of 55, 27 and 13. Its classifier convolution is left out.
    """
    convolution, relu, pooling, *rest = squeezenet1_1(num_classes=1).features
    stride = first_stride(size)
    convolution.stride, convolution.padding = (stride, stride), (1, 1)
    stem = nn.Sequential(convolution, relu, *([pooling] if size == 224 else []))
    one, two, pool3, three, four, pool5, five, six, seven, eight = rest
    stages = [[one, two], [nn.Sequential(pool3, three), four], [nn.Sequential(pool5, five), six], [seven, eight]]
    return Backbone(stem, stages, CHANNELS, strides=(1, 2, 2, 1))
