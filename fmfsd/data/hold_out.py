"""The validation split: samples of the training set that are held out, equally many of each class."""

import numpy as np

from fmfsd.data.unsharded_set import RawSet, Samples
from fmfsd.errors import DataError, Problem

Splits = dict[str, Samples]


def split_set(raw: RawSet, num_valid: int, seed: int) -> Splits:
    """Return the splits of `raw`, with `num_valid` samples held out of train unless there is a validation split.

    Raises DataError for a positive `num_valid` if there is one.
    """
    if raw.valid is None:
        train, valid = hold_out(raw.train, num_valid, len(raw.classes), seed)
        return {"train": train, **({"valid": valid} if len(valid) else {}), "test": raw.test}
    if num_valid:
        found = f"the source has a validation split of {len(raw.valid)} images"
        raise DataError([Problem(f"--valid {num_valid}", f"{found}: leave the option out, or remove that split")])
    return {"train": raw.train, "valid": raw.valid, "test": raw.test}


def hold_out(samples: Samples, count: int, num_classes: int, seed: int) -> tuple[Samples, Samples]:
    """Return the remaining and the held-out samples: `count` of them, equally many per class, chosen by `seed`."""
    if count % num_classes:
        raise DataError(f"{count} held-out samples can't be divided equally among {num_classes} classes")
    random_keys = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(len(samples))
    is_held_out = np.zeros(len(samples), bool)
    for label in range(num_classes):
        members = np.flatnonzero(samples.labels == label)
        if count and len(members) <= count // num_classes:
            raise DataError(
                f"class {label} has {len(members)} samples, too few to hold out {count // num_classes} of them"
            )
        is_held_out[members[np.argsort(random_keys[members], kind="stable")[: count // num_classes]]] = True
    return samples.take(~is_held_out), samples.take(is_held_out)
