"""Everything that can be known to be wrong before a process is started or a file is written; all of it at once."""

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from fmfsd.config import Timeline, TrainConfig, differences, load_config
from fmfsd.data.index import CHECKED_AT_LAUNCH_BYTES, damaged_files, read_index, set_folder
from fmfsd.errors import CheckError, ConfigError, DataError, Problem
from fmfsd.rundir import RunDir
from launcher.config import LaunchConfig
from launcher.plan import placement
from launcher.resources import Resources

TESTED_TORCH = ("2.11", "2.16")
"""The first version that works, and the first that was not tried."""
FREE_BYTES = 256 << 20


def require_sound(
    config: TrainConfig, launch: LaunchConfig, resources: Resources, run: RunDir, *, checksums: bool
) -> None:
    """Raises ConfigError (exit code 2) or, if the config itself is right, CheckError (3) with everything that is wrong.

    `checksums`: also verify the content of every shard, of sets up to CHECKED_AT_LAUNCH_BYTES.
    """
    wrong = [*_workers(config, launch, resources), *_run_dir(config, launch, run)]
    missing = [*_software(), *_space(run), *_data(config, checksums=checksums)]
    if wrong:
        raise ConfigError([*wrong, *missing])
    if missing:
        raise CheckError(missing)


def is_prepared(config: TrainConfig) -> bool:
    """Whether the set that `config` asks for is there; it may still be damaged."""
    return set_folder(config.data).exists()


def _workers(config: TrainConfig, launch: LaunchConfig, resources: Resources) -> Iterator[Problem]:
    device, workers = placement(launch, resources)
    wanted, found, shards = launch.nodes * workers, len(resources.gpus), config.data.shards
    if device == "cuda" and wanted > found:
        advice = f"set --gpus {found // launch.nodes}" if found >= launch.nodes else "set --device cpu"
        yield Problem(
            "--gpus", f"{launch.nodes} nodes of {workers} workers need {wanted} GPUs, {found} visible: {advice}"
        )
    if shards % wanted:
        fits = [count for count in range(1, shards + 1) if shards % count == 0]
        near = [*[count for count in fits if count < wanted][-1:], *[count for count in fits if count > wanted][:1]]
        nearest = " or ".join(map(str, near))
        yield Problem(
            "--nodes, --gpus", f"{wanted} workers do not divide data.shards {shards}: nearest are {nearest} workers"
        )


def _run_dir(config: TrainConfig, launch: LaunchConfig, run: RunDir) -> Iterator[Problem]:
    where = str(run.path)
    if run.path.exists() and launch.resume == "never":
        yield Problem(where, "exists, and --resume never does not go on with a run: choose another --run-dir")
    elif run.config.exists():
        try:
            changed = differences(load_config(str(run.config)), config)
        except ConfigError as error:
            yield from error.problems
            return
        if changed:
            yield Problem(
                where,
                f"belongs to another config ({'; '.join(changed)}): choose another --run-dir, or change nothing",
            )
    elif run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        yield Problem(where, "exists and is no run directory: choose another --run-dir")
    if run.path.is_dir() and run.path.stat().st_uid != os.getuid():
        yield Problem(where, "belongs to another user: choose another --run-dir")


def _software() -> Iterator[Problem]:
    for package in ("torch", "torchvision"):
        if find_spec(package) is None:
            yield Problem(package, "not installed in this environment: install fmfsd with its dependencies")
            return
    first, beyond = (tuple(map(int, text.split("."))) for text in TESTED_TORCH)
    try:
        found = tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    if not first <= found < beyond:
        yield Problem("torch", f"version {version('torch')} is not between {TESTED_TORCH[0]} and {TESTED_TORCH[1]}")


def _space(run: RunDir) -> Iterator[Problem]:
    place = next(parent for parent in (run.path, *run.path.parents) if parent.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        yield Problem(str(place), "not writable, so the run can't be kept there: choose another --run-dir")
    elif (free := shutil.disk_usage(place).free) < FREE_BYTES:
        yield Problem(
            str(place),
            f"{free >> 20} MiB free, a run needs at least {FREE_BYTES >> 20}: free some or choose another --run-dir",
        )


def _data(config: TrainConfig, *, checksums: bool) -> Iterator[Problem]:
    """Problems of a set that is there; one that is not is prepared by the launch."""
    folder = set_folder(config.data)
    if not folder.exists():
        yield from _root(Path(folder).parent)
        return
    try:
        index = read_index(folder)
    except DataError as error:
        yield from error.problems
        return
    damaged = list(damaged_files(index, checksums=checksums and index.total_bytes() <= CHECKED_AT_LAUNCH_BYTES))
    yield from damaged
    asked = (config.data.name, config.data.shards, config.data.valid)
    if (index.name, index.shards, index.valid) != asked:
        yield Problem(
            str(folder), f"holds {index.name}, {index.shards} shards, {index.valid} held out; the config wants {asked}"
        )
    elif not damaged and Timeline.of(config, index.samples("train")).steps_per_epoch < 1:
        yield Problem(
            "train.batch",
            f"{config.train.batch} is more than the {index.samples('train')} training samples in {folder} give",
        )


def _root(root: Path) -> Iterator[Problem]:
    place = next(parent for parent in (root, *root.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Problem(
            str(root),
            "data.root is not writable, and the set is not prepared there: prepare it elsewhere and set data.root",
        )
