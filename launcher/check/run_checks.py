"""Checks that the run directory is usable, and that an existing run there is the same run."""

import math
import os
from collections.abc import Iterator

from fmfsd.config import RunConfig, find_changes, load_config
from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.run.init_weights_source import INIT_FROM_KEY, find_weights
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import access_remedy, read_json
from fmfsd.system.file_locks import find_lock_problem
from launcher.check.data_checks import total_steps
from launcher.config.launch_config import LaunchConfig
from launcher.run_dir.run_lock import Owner, run_in_use_message


def check_run_dir(launch: LaunchConfig, run: RunDir) -> Iterator[Problem]:
    path = str(run.path)
    if not run.is_unused() and launch.resume == "never":
        yield Problem(path, "exists, and --resume never is set: choose another --run-dir")
    elif not run.config.exists() and not run.is_unused():
        yield Problem(path, "exists and is not a run directory: choose another --run-dir")


def check_not_in_use(run: RunDir) -> Iterator[Problem]:
    """Check that no other launch uses the run, as far as that is known without taking the lock."""
    owner = Owner.of_run(run)
    if owner is not None and owner.is_alive:
        yield Problem(str(run.path), run_in_use_message(run))
    elif problem := find_lock_problem(run.lock):
        yield Problem("", problem)


def check_init_weights(config: RunConfig, run: RunDir) -> Iterator[Problem]:
    """Check that the initial weights of a run without a checkpoint exist and are readable."""
    if config.train.init_from is None or run.newest_step() is not None:
        return
    try:
        newest = find_weights(config.train.init_from)[0]
    except CheckError as error:
        yield from error.problems
        return
    files = newest.glob("*") if newest.is_dir() else [newest]
    if not os.access(newest, os.R_OK) or not all(os.access(path, os.R_OK) for path in files):
        yield Problem(INIT_FROM_KEY, f"{newest} can't be read: {access_remedy(newest)}")


def check_config_changes(config: RunConfig, launch: LaunchConfig, run: RunDir) -> Iterator[Problem]:
    """Check the config against that of an existing run: it must still be the same run, and not have ended already."""
    if not run.config.exists() or launch.resume == "never":
        return
    try:
        before = load_config(str(run.config))
    except ConfigError as error:
        yield from error.problems
        return
    changes_found = find_changes(before, config)
    if refused := [str(change) for change in changes_found if not change.is_allowed]:
        message = f"belongs to another config ({'; '.join(refused)}): choose another --run-dir, or change nothing"
        yield Problem(str(run.path), message)
    total, step = total_steps(config), run.newest_step()
    if total is not None and step is not None and total <= step and total != total_steps(before):
        yield Problem(
            "train.epochs, train.max_steps", f"give {total} steps, and {run.path} has already done {step}: set more"
        )


def warn_short_grace(launch: LaunchConfig, run: RunDir) -> Iterator[str]:
    """Warn if stopping an existing run takes longer than the grace, by the run's own measurement."""
    try:
        stop_s = float(read_json(run.rank_progress(0))["stop_takes_s"])
    except (OSError, ValueError, KeyError):
        return
    if stop_s > launch.grace_s:
        suggested_s = math.ceil(2 * stop_s)
        starter_hint = " and --starter torchrun" if suggested_s > launch.max_grace_s else ""
        yield (
            f"--grace {launch.grace_s:g}: a step and a save of this run took {stop_s:.1f} s, so a stop may lose work: "
            f"set --grace {suggested_s}{starter_hint}"
        )
