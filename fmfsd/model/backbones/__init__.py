"""Backbones: a stem and stages of blocks, by name; each is built for a given image size."""

from collections.abc import Callable, Mapping
from functools import partial

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.mobilenet import mobilenetv2, mobilenetv3_large
from fmfsd.model.backbones.resnet import cifar_resnet, imagenet_style_resnet, resnext50
from fmfsd.model.backbones.squeezenet import squeezenet
from fmfsd.model.backbones.vgg import vgg
from fmfsd.model.backbones.wide_resnet import wide_resnet

BACKBONES: Mapping[str, Callable[[int], Backbone]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth=depth) for depth in (8, 20, 32, 56, 110)},
    **{f"resnet{depth}": partial(imagenet_style_resnet, depth=depth) for depth in (18, 34, 50, 101, 152)},
    "wrn16_8": partial(wide_resnet, depth=16, factor=8),
    "wrn28_10": partial(wide_resnet, depth=28, factor=10),
    "resnext50": resnext50,
    **{f"vgg{depth}": partial(vgg, depth=depth) for depth in (11, 13, 16, 19)},
    "mobilenetv2": mobilenetv2,
    "mobilenetv3_large": mobilenetv3_large,
    "squeezenet": squeezenet,
}

__all__ = ["BACKBONES", "Backbone"]
