"""The names that a config may use, and what can be said of them without torch and without data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownSet:
    """A data set: its number of classes and of samples."""

    num_classes: int
    train_samples: int
    test_samples: int


DATASETS = {
    "cifar10": KnownSet(num_classes=10, train_samples=50_000, test_samples=10_000),
    "cifar100": KnownSet(num_classes=100, train_samples=50_000, test_samples=10_000),
    "synthetic10": KnownSet(num_classes=10, train_samples=9_600, test_samples=1_280),
    "synthetic100": KnownSet(num_classes=100, train_samples=25_600, test_samples=5_120),
}

BACKBONE_CHANNELS = {
    "resnet8": (16, 32, 64),
    "resnet20": (16, 32, 64),
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
}
"""Channels of each stage's output. The stages are called stage1, stage2, ..."""


def taps(backbone: str) -> tuple[str, ...]:
    """Where branches can leave `backbone`: after every stage but the last, shallow to deep."""
    return tuple(f"stage{number}" for number in range(1, len(BACKBONE_CHANNELS[backbone])))
