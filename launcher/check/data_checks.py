"""Checks of the data set: it exists, is complete, belongs to the run, and can be divided among the workers."""

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmfsd.config import RunConfig, TrainSchedule
from fmfsd.config.consistency import find_length_contradictions
from fmfsd.config.names import FOLDER, FOLDER_LAYOUT
from fmfsd.data.shards.index import find_damaged_files, prepared_set_folder, read_index
from fmfsd.errors import DataError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import access_remedy, nearest_visible, read_json, sha256
from launcher.config.launch_config import LaunchConfig
from launcher.resources.config_cost import Costs
from launcher.resources.site import Site


def is_prepared(config: RunConfig) -> bool:
    """Return whether the data set of `config` exists; it may still be damaged."""
    return os.path.exists(prepared_set_folder(config.data))


def total_steps(config: RunConfig) -> int | None:
    """Return the steps of the whole run; None if its data can't be read, which another check reports."""
    return timeline.total_steps if (timeline := _read_timeline(config)) is not None else None


def last_epoch(config: RunConfig) -> int:
    """Return the number of the run's last epoch, from 1 on; the configured maximum if its data can't be read."""
    timeline = _read_timeline(config)
    return math.ceil(timeline.total_steps / timeline.steps_per_epoch) if timeline else config.train.epochs


def _read_timeline(config: RunConfig) -> TrainSchedule | None:
    try:
        return TrainSchedule.from_config(config, read_index(prepared_set_folder(config.data)).num_samples("train"))
    except DataError:
        return None


def check_even_shares(config: RunConfig, launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    if message := uneven_shares_problem(site.count_workers(launch), config.data.shards):
        yield Problem("--nodes, --gpus", message)


def uneven_shares_problem(workers: int, shards: int) -> str:
    """Return why `shards` can't be divided evenly among `workers`; empty if they can."""
    if shards % workers == 0:
        return ""
    valid_counts = divisors(shards)
    nearest = [
        *[count for count in valid_counts if count < workers][-1:],
        *[count for count in valid_counts if count > workers][:1],
    ]
    return f"{workers} workers do not divide data.shards {shards}; nearest: {' or '.join(map(str, nearest))}"


def divisors(shards: int) -> list[int]:
    """Return the numbers of workers that divide the shards evenly."""
    return [count for count in range(1, shards + 1) if shards % count == 0]


def check_dataset(config: RunConfig, *, checksums_bytes: float) -> Iterator[Problem]:
    """Check a data set that exists; checksums only for a set of at most `checksums_bytes`.

    A set that does not exist is prepared by the launch.
    """
    folder = prepared_set_folder(config.data)
    if (visible_folder := nearest_visible(folder)).is_dir() and not os.access(visible_folder, os.X_OK):
        yield Problem(str(folder), f"can't be read: {access_remedy(folder)}")
        return
    if not folder.exists():
        yield from _check_preparable(folder.parent) if config.data.name != FOLDER else _unprepared_problem(config)
        return
    try:
        index = read_index(folder)
    except DataError as error:
        yield from error.problems
        return
    damage = list(find_damaged_files(index, checksums=index.total_bytes() <= checksums_bytes))
    yield from damage
    expected = (config.data.name, config.data.shards, config.data.valid)
    if (index.name, index.shards, index.valid) != expected:
        yield Problem(
            str(folder),
            f"contains {index.name}, {index.shards} shards, {index.valid} held out; the config requests {expected}",
        )
    elif len(index.classes) != config.data.num_classes:
        yield Problem(
            "data.classes", f"{config.data.num_classes}, but {folder} has {len(index.classes)}: set it to that"
        )
    elif not damage and TrainSchedule.from_config(config, index.num_samples("train")).steps_per_epoch < 1:
        yield Problem(
            "train.batch",
            f"{config.train.batch} is more than the {index.num_samples('train')} training samples in {folder} give",
        )
    elif config.data.name == FOLDER:
        yield from (Problem(*each) for each in find_length_contradictions(config, index.num_samples("train")))
        if not config.train.evaluate_test and "valid" not in index.splits:
            yield Problem("train.evaluate_test", f"false, and {folder} has no validation split: set data.valid or true")


def check_same_dataset(config: RunConfig, run: RunDir) -> Iterator[Problem]:
    """Check that a resumed run uses the data set that it was started with."""
    index = prepared_set_folder(config.data) / "index.json"
    try:
        before, now = read_json(run.manifest)["data"], sha256(index)
    except (OSError, ValueError, KeyError):
        return
    if before != now:
        sums = f"its index has the SHA-256 sum {now[:16]}..., the run was started with {before[:16]}..."
        yield Problem(str(index.parent), f"is not the data set of {run.path}: {sums}: choose another --run-dir")


def _unprepared_problem(config: RunConfig) -> Iterator[Problem]:
    """Yield the command that prepares the set: only the user knows where the images are."""
    data = config.data
    options = {"--out": data.root, "--size": data.size, "--shards": data.shards, "--valid": data.valid}
    flat = shlex.join(str(part) for option in options.items() for part in option)
    yield Problem(
        str(prepared_set_folder(data)),
        f"does not exist: create it with `fmfsd data prepare folder --source ROOT {flat}`; ROOT has {FOLDER_LAYOUT}",
    )


def _check_preparable(root: Path) -> Iterator[Problem]:
    place = next(parent for parent in (root, *root.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Problem(
            str(root),
            "data.root is not writable, and the set is not prepared there: prepare it elsewhere and set data.root",
        )


def warn_other_statistics(config: RunConfig, costs: Costs) -> Iterator[str]:
    """Warn if images are normalised with other statistics than those of the pretrained weights."""
    statistics = costs.probe.pretrained_statistics if costs.probe is not None else None
    for key, theirs in zip(("mean", "std"), statistics or (), strict=False):
        ours = getattr(config.data, key)
        if ours not in ("auto", theirs):
            yield (
                f"data.{key} is {_format(ours)}, the pretrained weights were trained with {_format(theirs)}: "
                f"set data.{key} auto to use theirs"
            )


def _format(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
