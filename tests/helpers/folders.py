"""Tiny image folders in the layouts that users have."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fmfsd.config.load import load_data_config
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import SetIndex
from fmfsd.data.synthetic import synthetic_images

CLASSES = ("ant", "bee", "cat", "dog")


def write_folders(
    root: Path, *, train: int, test: int = 4, size: tuple[int, int] = (32, 32), test_folder: str = "val"
) -> Path:
    """Write `train` and `test` images per class, alternately PNG and JPEG, of `size` (width, height).

    The images are those of four classes of the synthetic set. `held` is the name of the test split's folder.
    """
    for seed, (split, count) in enumerate({"train": train, test_folder: test}.items()):
        images, labels = synthetic_images(10, 10 * count, seed=seed)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            if label < len(CLASSES):
                folder = root / split / CLASSES[label]
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{number:04d}.{'JPG' if number // 10 % 2 else 'png'}"
                Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(size).save(folder / name)
    return root


def write_image(path: Path, *, seed: int = 0, side: int = 32) -> Path:
    """Write an image of random pixels, in the format given by the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_images(root: Path, *names: str) -> Path:
    """Write one image per name below `root`; all images differ."""
    for name in names:
        write_image(root / name, seed=zlib.crc32(os.fsencode(name)))
    return root


def write_tiny_imagenet(root: Path, *, classes: tuple[str, ...] = ("n01443537", "n01629819"), count: int = 3) -> Path:
    """Write Tiny ImageNet's layout: box files and `images` in each training class; an annotations file labels val."""
    write_images(root, *(f"train/{name}/images/{name}_{n}.JPEG" for name in classes for n in range(count)))
    for name in classes:
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t31\t31\n")
    lines = [f"val_{n}.JPEG\t{name}\t0\t0\t31\t31\n" for n, name in enumerate(classes * count)]
    (root / "val").mkdir()
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    for number in range(len(lines)):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", seed=100 + number)
    for number in range(4):
        write_image(root / "test" / "images" / f"test_{number}.JPEG", seed=200 + number)
    for name in ("wnids.txt", "words.txt"):
        (root / name).write_text("\n".join(classes))
    return root


def prepare_folders(root: Path, source: Path | None, *, skip_damaged: bool = False, **values: Any) -> SetIndex:
    """Prepare the image folders in `source` below `root`; `values` override the data section (default: four shards)."""
    data = load_data_config(**{"name": "folder", "root": str(root), "shards": 4, **values})
    return prepare(data, source=source, fetch=False, skip_damaged=skip_damaged, report=lambda *_: None)
