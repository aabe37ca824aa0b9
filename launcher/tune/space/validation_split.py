"""The samples that a search judges by: held out of the training set, as the test set is for the winners alone."""

from collections.abc import Sequence

from fmfsd.config import RunConfig, load_config
from fmfsd.config.names import DATASETS, FOLDER
from fmfsd.data.shards.index import read_index, set_folder
from fmfsd.errors import ConfigError, Problem

SHARE = 10
"""A tenth, or a few more."""


def for_search(source: str, overrides: Sequence[str], *, data_root: str) -> tuple[list[str], int]:
    """What is to be set beside `overrides` so that trials hold samples out and leave the test set alone, and how many
    samples that are; 0: the config does so itself. ConfigError."""
    config = load_config(source, overrides, data_root=data_root)
    held_out = 0 if config.data.valid or _has_valid_split(config) else fitting(config)
    also = [f"data.valid={held_out}"] if held_out else []
    return [*also, "train.evaluate_test=false"], held_out


def _has_valid_split(config: RunConfig) -> bool:
    """Whether the set is an image folder that came with a validation split."""
    folder = set_folder(config.data)
    return config.data.name == FOLDER and folder.exists() and "valid" in read_index(folder).splits


def fitting(config: RunConfig) -> int:
    """The fewest from a tenth on that are the same number of each class and leave whole batches of every shard."""
    samples, classes = _train_samples(config), config.data.num_classes
    first = -(-samples // SHARE // classes) * classes
    whole = (count for count in range(first, samples // 2, classes) if (samples - count) % config.train.batch == 0)
    return next(whole, first)


def _train_samples(config: RunConfig) -> int:
    if (known := DATASETS.get(config.data.name)) is not None:
        return known.train_samples
    if not set_folder(config.data).exists():
        message = "0, and a search judges by held-out samples: prepare the set with --valid N, and set data.valid to N"
        raise ConfigError([Problem("data.valid", message)])
    return read_index(set_folder(config.data)).samples("train")
