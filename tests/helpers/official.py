"""Tiny sets in the official CIFAR layouts."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fmfsd.config.known import DATASETS
from fmfsd.data.official import OFFICIAL
from fmfsd.data.synthetic import synthetic_images


def official_contents(name: str, *, train: int, test: int, seed: int = 1) -> dict[str, dict[str, Any]]:
    """What each official file of a set of `train` and `test` samples holds, by file name."""
    official, num_classes = OFFICIAL[name], DATASETS[name].num_classes
    images, labels = synthetic_images(num_classes, train + test, seed=seed)
    rows = images.reshape(len(images), -1)
    bounds = np.linspace(0, train, len(official.train) + 1).astype(int)
    pieces = [*zip(official.train, bounds, bounds[1:], strict=False), (next(iter(official.test)), train, train + test)]
    contents: dict[str, dict[str, Any]] = {
        file: {"data": rows[start:end], official.label_key: labels[start:end].tolist(), "batch_label": file}
        for file, start, end in pieces
    }
    names = [f"class{number}" for number in range(num_classes)]
    return {**contents, next(iter(official.meta)): {official.names_key: names}}


def write_official(
    folder: Path,
    name: str,
    *,
    train: int = 256,
    test: int = 64,
    seed: int = 1,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write such a set below `folder`; `changes` replace whole files, by name, with an object or with bytes."""
    home = folder / OFFICIAL[name].folder
    home.mkdir(parents=True)
    for file, content in (official_contents(name, train=train, test=test, seed=seed) | dict(changes)).items():
        (home / file).write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    return folder
