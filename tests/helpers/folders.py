"""Tiny folders of images, as a user has them."""

from pathlib import Path

import numpy as np
from PIL import Image

from fmfsd.data.synthetic import synthetic_images

CLASSES = ("ant", "bee", "cat", "dog")


def write_folders(
    root: Path, *, train: int, test: int = 4, size: tuple[int, int] = (32, 32), held: str = "val"
) -> Path:
    """So many images a class, PNG and JPEG in turn, of `size` (width, height): four patterns of the built-in set."""
    for seed, (split, count) in enumerate({"train": train, held: test}.items()):
        images, labels = synthetic_images(10, 10 * count, seed=seed)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            if label < len(CLASSES):
                folder = root / split / CLASSES[label]
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{number:04d}.{'JPG' if number // 10 % 2 else 'png'}"
                Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(size).save(folder / name)
    return root
