"""The names that a config may use, and what can be said of them without torch and without data."""

from dataclasses import dataclass
from itertools import chain

from fmfsd.places import place_names


@dataclass(frozen=True)
class KnownSet:
    """A data set: its number of classes and of samples, and the side of its images in pixels."""

    num_classes: int
    train_samples: int
    test_samples: int
    size: int = 32


DATASETS = {
    "cifar10": KnownSet(num_classes=10, train_samples=50_000, test_samples=10_000),
    "cifar100": KnownSet(num_classes=100, train_samples=50_000, test_samples=10_000),
    "synthetic10": KnownSet(num_classes=10, train_samples=9_600, test_samples=1_280),
    "synthetic100": KnownSet(num_classes=100, train_samples=25_600, test_samples=5_120),
}
FOLDER = "folder"
"""The set that a user brings: what it holds is known when it is prepared."""
STORED_SIDE = {32: 32, 64: 64, 224: 256}
"""By the side that a network sees, that of an image folder's shards: with room for parts of large images."""

Channels = tuple[tuple[int, ...], ...]
"""Of each block's output, stage by stage."""


def _stages(widths: tuple[int, ...], counts: tuple[int, ...]) -> Channels:
    return tuple((width,) * count for width, count in zip(widths, counts, strict=True))


BACKBONES: dict[str, Channels] = {
    "resnet8": _stages((16, 32, 64), (1, 1, 1)),
    "resnet20": _stages((16, 32, 64), (3, 3, 3)),
    "resnet18": _stages((64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet34": _stages((64, 128, 256, 512), (3, 4, 6, 3)),
    "resnet50": _stages((256, 512, 1024, 2048), (3, 4, 6, 3)),
}
TIMM = "timm/"
"""What comes before the name of one of timm's models: only timm can tell its stages."""


def taps(backbone: str) -> tuple[str, ...]:
    """Where branches can leave `backbone`, shallow to deep; empty if that is not known here."""
    return tuple(channels_at(backbone))[:-1]


def channels_at(backbone: str) -> dict[str, int]:
    """By place, the last one included; empty if that is not known here."""
    stages = BACKBONES.get(backbone, ())
    return dict(zip(place_names([len(stage) for stage in stages]), chain.from_iterable(stages), strict=True))
