"""Tiny sets in the official CIFAR layouts."""

import io
import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from fmfsd.config.names import DATASETS
from fmfsd.data.cifar.official_files import OFFICIAL
from fmfsd.data.synthetic import synthetic_images


def official_contents(name: str, *, train: int, test: int, seed: int = 1) -> dict[str, dict[str, Any]]:
    """Return the unpickled contents of the official files of a set of `train` and `test` samples, by file name."""
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
    """Write the official files below `folder`; `changes` replace whole files, by name, with an object or with bytes."""
    set_folder = folder / OFFICIAL[name].folder
    set_folder.mkdir(parents=True)
    for file, content in (official_contents(name, train=train, test=test, seed=seed) | dict(changes)).items():
        (set_folder / file).write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    return folder


def write_parquet(
    folder: Path, name: str, *, train: int = 256, test: int = 64, columns: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Write the same set as parquet files in Hugging Face's format; `columns` renames columns."""
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    official, contents = OFFICIAL[name], official_contents(name, train=train, test=test)
    folder.mkdir(parents=True, exist_ok=True)
    for split, files in (("train", official.train), ("test", official.test)):
        rows = np.concatenate([contents[file]["data"] for file in files]).reshape(-1, 3, 32, 32)
        labels = [label for file in files for label in contents[file][official.label_key]]
        images = [{"bytes": _png(row), "path": None} for row in rows]
        table = {"img": images, official.parquet_label: labels, "coarse_label": [0] * len(labels)}
        renamed = {columns.get(key, key): values for key, values in table.items()}
        parquet.write_table(arrow.table(renamed), folder / f"{split}-00000-of-00001.parquet")
    return folder


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, format="PNG")
    return file.getvalue()
