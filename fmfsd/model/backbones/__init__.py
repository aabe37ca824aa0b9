"""Backbones as a stem and a list of stages, by name."""

from collections.abc import Callable, Mapping

from fmfsd.model.backbones.backbone import Backbone
from fmfsd.model.backbones.resnet import cifar_resnet, imagenet_style_resnet

BACKBONES: Mapping[str, Callable[[], Backbone]] = {
    "resnet8": lambda: cifar_resnet(depth=8),
    "resnet18": lambda: imagenet_style_resnet(depth=18),
    "resnet20": lambda: cifar_resnet(depth=20),
    "resnet34": lambda: imagenet_style_resnet(depth=34),
    "resnet50": lambda: imagenet_style_resnet(depth=50),
}

__all__ = ["BACKBONES", "Backbone"]
