"""VGG with batch normalisation (Simonyan & Zisserman 2014, arXiv:1409.1556), torchvision's layers."""

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from fmfsd.model.backbones.backbone import Backbone

_LETTERS = {11: "A", 13: "B", 16: "D", 19: "E"}


def vgg(_size: int, *, depth: int) -> Backbone:
    """VGG-11, -13, -16 or -19: five stages, the same for every image size.

    A block is a convolution with its BN and ReLU; all stages but the first start with max-pooling. VGG's three large
    linear layers are left out: the network's heads use global average pooling.
    """
    stages, channels = [list[nn.Module]()], [list[int]()]
    block: list[nn.Module] = []
    for layer in make_layers(cfgs[_LETTERS[depth]], batch_norm=True)[:-1]:
        block.append(layer)
        if isinstance(layer, nn.MaxPool2d):
            stages.append([])
            channels.append([])
        elif isinstance(layer, nn.BatchNorm2d):
            channels[-1].append(layer.num_features)
        elif isinstance(layer, nn.ReLU):
            stages[-1].append(nn.Sequential(*block))
            block = []
    return Backbone(nn.Identity(), stages, channels, strides=(1, 2, 2, 2, 2))
