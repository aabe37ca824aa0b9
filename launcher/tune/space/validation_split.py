"""The validation split of a sweep: training samples held out to compare trials by."""

from collections.abc import Sequence

from fmfsd.config import RunConfig, load_config
from fmfsd.config.names import DATASETS, FOLDER
from fmfsd.data.shards.index import prepared_set_folder, read_index
from fmfsd.errors import ConfigError, Problem

HOLDOUT_DIVISOR = 10
"""At least one in this number of training samples is held out."""


def split_overrides(source: str, overrides: Sequence[str], *, data_root: str) -> tuple[list[str], int]:
    """Return overrides that hold out samples and disable the evaluation of the test set, and the number of samples.

    The number is 0 if the config has a validation split itself. Raise ConfigError if the config is invalid.
    """
    config = load_config(source, overrides, data_root=data_root)
    held_out = 0 if config.data.valid or _has_valid_split(config) else choose_holdout_size(config)
    split = [f"data.valid={held_out}"] if held_out else []
    return [*split, "train.evaluate_test=false"], held_out


def _has_valid_split(config: RunConfig) -> bool:
    """Return whether the data set is an image folder with its own validation split."""
    folder = prepared_set_folder(config.data)
    return config.data.name == FOLDER and folder.exists() and "valid" in read_index(folder).splits


def choose_holdout_size(config: RunConfig) -> int:
    """Return the smallest number, from a tenth on, with equally many per class and whole batches for training."""
    samples, classes = _train_samples(config), config.data.num_classes
    first = -(-samples // HOLDOUT_DIVISOR // classes) * classes
    whole = (count for count in range(first, samples // 2, classes) if (samples - count) % config.train.batch == 0)
    return next(whole, first)


def _train_samples(config: RunConfig) -> int:
    if (known := DATASETS.get(config.data.name)) is not None:
        return known.train_samples
    if not prepared_set_folder(config.data).exists():
        message = (
            "0, but a sweep needs validation samples: prepare the data set with --valid N, and set data.valid to N"
        )
        raise ConfigError([Problem("data.valid", message)])
    return read_index(prepared_set_folder(config.data)).num_samples("train")
