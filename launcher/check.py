"""Everything that can be known to be wrong before a process is started or a file is written; all of it at once."""

import math
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from fmfsd.config import Timeline, TrainConfig, changes, load_config
from fmfsd.data.index import CHECKED_AT_LAUNCH_BYTES, damaged_files, read_index, set_folder
from fmfsd.errors import CheckError, ConfigError, DataError, Problem
from fmfsd.files import read_json, sha256
from fmfsd.rundir import RunDir
from launcher.config import LaunchConfig
from launcher.ownership import Owner, busy
from launcher.site import Site

TESTED_TORCH = ("2.11", "2.16")
"""The first version that works, and the first that was not tried."""
FREE_BYTES = 320 << 20
"""Two kept checkpoints and the one that is being written, of FMFSD ResNet-18: 12.6 M weights and momenta in fp32."""


def require_sound(config: TrainConfig, launch: LaunchConfig, site: Site, run: RunDir, *, checksums: bool) -> None:
    """Raises ConfigError (exit code 2) or, if the config itself is right, CheckError (3) with everything that is wrong.

    `checksums`: also verify the content of every shard, of sets up to CHECKED_AT_LAUNCH_BYTES.
    """
    wrong = [*_gpus(launch, site), *_run_dir(launch, run), *_fit(config, launch, site, run)]
    missing = [*_in_use(run), *_software(), *_space(run), *_data(config, checksums=checksums), *_same_data(config, run)]
    if wrong:
        raise ConfigError([*wrong, *missing])
    if missing:
        raise CheckError(missing)


def problems_of_any_config(launch: LaunchConfig, site: Site, run: RunDir) -> list[Problem]:
    """What is wrong whatever is trained: said together with what is wrong with a config."""
    return [*_gpus(launch, site), *_run_dir(launch, run), *_in_use(run), *_software(), *_space(run)]


def is_prepared(config: TrainConfig) -> bool:
    """Whether the set that `config` asks for is there; it may still be damaged."""
    return set_folder(config.data).exists()


def _gpus(launch: LaunchConfig, site: Site) -> Iterator[Problem]:
    device, workers = site.placement(launch)
    wanted, found = launch.nodes * workers, site.gpus_for(launch)
    if device == "cuda" and wanted > found:
        advice = f"set --gpus {found // launch.nodes}" if found >= launch.nodes else "set --device cpu"
        each = f"{launch.nodes} x {workers} workers need a GPU each"
        yield Problem("--nodes, --gpus", f"{each}, {found} visible: {advice}")


def _run_dir(launch: LaunchConfig, run: RunDir) -> Iterator[Problem]:
    where = str(run.path)
    if not run.is_unused() and launch.resume == "never":
        yield Problem(where, "exists, and --resume never does not go on with a run: choose another --run-dir")
    elif not run.config.exists() and not run.is_unused():
        yield Problem(where, "exists and is no run directory: choose another --run-dir")
    if run.path.is_dir() and run.path.stat().st_uid != os.getuid():
        yield Problem(where, "belongs to another user: choose another --run-dir")


def _in_use(run: RunDir) -> Iterator[Problem]:
    """What can be known without the lock, which is only taken for good."""
    owner = Owner.of(run)
    if owner is not None and owner.is_known_to_live:
        yield Problem(str(run.path), busy(run))


def warnings(launch: LaunchConfig, run: RunDir) -> Iterator[str]:
    """What is said and does not keep a run from being started: a run that was here has measured how it stops."""
    try:
        takes_s = float(read_json(run.rank_progress(0))["stop_takes_s"])
    except (OSError, ValueError, KeyError):
        return
    if takes_s > launch.grace_s:
        yield (
            f"--grace {launch.grace_s:g}: a step and a save of this run took {takes_s:.1f} s, so a stop may lose work: "
            f"set --grace {math.ceil(2 * takes_s)}"
        )


def _fit(config: TrainConfig, launch: LaunchConfig, site: Site, run: RunDir) -> Iterator[Problem]:
    """What about `config` does not fit the workers or the run that is there."""
    wanted, shards = launch.nodes * site.placement(launch)[1], config.data.shards
    if shards % wanted:
        fits = [count for count in range(1, shards + 1) if shards % count == 0]
        near = [*[count for count in fits if count < wanted][-1:], *[count for count in fits if count > wanted][:1]]
        nearest = " or ".join(map(str, near))
        yield Problem("--nodes, --gpus", f"{wanted} workers do not divide data.shards {shards}; nearest: {nearest}")
    if run.config.exists() and launch.resume != "never":
        yield from _changes(config, run)


def _changes(config: TrainConfig, run: RunDir) -> Iterator[Problem]:
    """Of the run's own config, what makes it another run, or one that would have ended already."""
    try:
        before = load_config(str(run.config))
    except ConfigError as error:
        yield from error.problems
        return
    found = changes(before, config)
    if refused := [str(change) for change in found if not change.is_allowed]:
        message = f"belongs to another config ({'; '.join(refused)}): choose another --run-dir, or change nothing"
        yield Problem(str(run.path), message)
    total, step = total_steps(config), run.newest_step()
    if total is not None and step is not None and total <= step and total != total_steps(before):
        yield Problem("train.epochs, train.max_steps", f"make {total} steps, and {run.path} has done {step} already")


def total_steps(config: TrainConfig) -> int | None:
    """Steps of the whole run; None where its data can't be read, which is told elsewhere."""
    try:
        return Timeline.of(config, read_index(set_folder(config.data)).samples("train")).total_steps
    except DataError:
        return None


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


def _same_data(config: TrainConfig, run: RunDir) -> Iterator[Problem]:
    """A run goes on with the images that it was started with."""
    index = set_folder(config.data) / "index.json"
    try:
        before, now = read_json(run.manifest)["data"], sha256(index)
    except (OSError, ValueError, KeyError):
        return
    if before != now:
        sums = f"its index has the SHA-256 sum {now[:16]}..., the run was started with {before[:16]}..."
        yield Problem(str(index.parent), f"is not the set of {run.path}: {sums}: choose another --run-dir")


def _root(root: Path) -> Iterator[Problem]:
    place = next(parent for parent in (root, *root.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Problem(
            str(root),
            "data.root is not writable, and the set is not prepared there: prepare it elsewhere and set data.root",
        )
