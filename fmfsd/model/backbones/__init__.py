"""Backbones as a stem and stages of blocks, by name; each is made for a size of images."""

from collections.abc import Callable, Mapping
from functools import partial

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.resnet import cifar_resnet, imagenet_style_resnet

BACKBONES: Mapping[str, Callable[[int], Backbone]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth=depth) for depth in (8, 20)},
    **{f"resnet{depth}": partial(imagenet_style_resnet, depth=depth) for depth in (18, 34, 50)},
}

__all__ = ["BACKBONES", "Backbone"]
