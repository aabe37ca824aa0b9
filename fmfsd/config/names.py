"""Names of data sets and backbones, with their properties that are known without torch and without data."""

from dataclasses import dataclass
from itertools import chain

from fmfsd.pretrained_names import TIMM as TIMM
from fmfsd.tap_names import name_taps


@dataclass(frozen=True)
class DatasetInfo:
    """A data set: its number of classes and of samples, and the side of its images in pixels."""

    num_classes: int
    train_samples: int
    test_samples: int
    size: int = 32


DATASETS = {
    "cifar10": DatasetInfo(num_classes=10, train_samples=50_000, test_samples=10_000),
    "cifar100": DatasetInfo(num_classes=100, train_samples=50_000, test_samples=10_000),
    "synthetic10": DatasetInfo(num_classes=10, train_samples=9_600, test_samples=1_280),
    "synthetic100": DatasetInfo(num_classes=100, train_samples=25_600, test_samples=5_120),
}
FOLDER = "folder"
"""Name of the user's own image folder; its size and classes are known only after `fmfsd data prepare`."""
FOLDER_LAYOUT = "train/CLASS/*.png, and test/CLASS/... or val/CLASS/... (with both, val is the validation split)"
"""Layout of the user's image folder."""
STORED_IMAGE_SIDE = {32: 32, 64: 64, 224: 256}
"""Image side in an image folder's shards, by the side of the network's input; larger where random crops need room."""

Channels = tuple[tuple[int, ...], ...]
"""Output channels of each block, stage by stage."""


def _stages(widths: tuple[int, ...], counts: tuple[int, ...]) -> Channels:
    return tuple((width,) * count for width, count in zip(widths, counts, strict=True))


_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)

BACKBONES: dict[str, Channels] = {
    **{f"resnet{depth}": _stages((16, 32, 64), (depth // 6,) * 3) for depth in (8, 20, 32, 56, 110)},
    "resnet18": _stages(_BASIC, (2, 2, 2, 2)),
    "resnet34": _stages(_BASIC, (3, 4, 6, 3)),
    "resnet50": _stages(_BOTTLENECK, (3, 4, 6, 3)),
    "resnet101": _stages(_BOTTLENECK, (3, 4, 23, 3)),
    "resnet152": _stages(_BOTTLENECK, (3, 8, 36, 3)),
    "wrn16_8": _stages((128, 256, 512), (2, 2, 2)),
    "wrn28_10": _stages((160, 320, 640), (4, 4, 4)),
    "resnext50": _stages(_BOTTLENECK, (3, 4, 6, 3)),
    "vgg11": _stages((64, 128, 256, 512, 512), (1, 1, 2, 2, 2)),
    "vgg13": _stages((64, 128, 256, 512, 512), (2, 2, 2, 2, 2)),
    "vgg16": _stages((64, 128, 256, 512, 512), (2, 2, 3, 3, 3)),
    "vgg19": _stages((64, 128, 256, 512, 512), (2, 2, 4, 4, 4)),
    "mobilenetv2": ((24,) * 2, (32,) * 3, (64,) * 4 + (96,) * 3, (160,) * 3 + (320, 1280)),
    "mobilenetv3_large": ((24,) * 2, (40,) * 3, (80,) * 4 + (112,) * 2, (160,) * 3 + (960,)),
    "squeezenet": _stages((128, 256, 384, 512), (2, 2, 2, 2)),
}
"""Blocks and channels of our own backbones. timm's models are missing: only timm knows their stages."""


def list_taps(backbone: str) -> tuple[str, ...]:
    """Return the taps at which branches can be attached, shallow to deep; empty for a backbone not in BACKBONES."""
    return tuple(get_tap_channels(backbone))[:-1]


def get_tap_channels(backbone: str) -> dict[str, int]:
    """Return the channels of every tap and of the last stage; empty for a backbone not in BACKBONES."""
    stages = BACKBONES.get(backbone, ())
    return dict(zip(name_taps([len(stage) for stage in stages]), chain.from_iterable(stages), strict=True))
