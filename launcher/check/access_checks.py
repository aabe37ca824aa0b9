"""Checks that this user may read and write what a launch needs in the run directory."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fmfsd.errors import Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import access_remedy, is_private, nearest_visible, user_name
from launcher.resources.site import Site

_FOLDER_ACCESS = os.R_OK | os.W_OK | os.X_OK


def check_visible(run: RunDir) -> Iterator[Problem]:
    """Check that this user can enter the run directory and its parents; otherwise nothing else can be checked."""
    for path in (run.path, run.checkpoints):
        folder = nearest_visible(path)
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK if folder == path else os.X_OK):
            remedy = access_remedy(run.path, "go+rwX")
            yield Problem(str(path), f"this user has no access to {folder}: {remedy}; or choose another --run-dir")
            return


def check_writable(run: RunDir) -> Iterator[Problem]:
    """Check that the run directory, or the folder in which it would be created, is writable."""
    folder = nearest_visible(run.path)
    if os.access(folder, os.W_OK | os.X_OK):
        return
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        why = "not writable (its file system is mounted read-only), so the run can't be stored there"
    else:
        why = f"not writable, so the run can't be stored there: {access_remedy(folder, 'go+rwX')}"
    yield Problem(str(folder), f"{why}: choose another --run-dir")


def check_access(run: RunDir) -> Iterator[Problem]:
    """Yield one problem for all files of an existing run that lack the access that a launch needs."""
    if paths := list(_denied_paths(run)):
        others = f" and to {len(paths) - 1} more there" if len(paths) > 1 else ""
        remedy = access_remedy(run.path, "go+rwX")
        own = f"a run of your own can start from its weights: set train.init_from={run.path} and another --run-dir"
        yield Problem(str(paths[0]), f"this user has no access{others}: {remedy}; {own}")


def _denied_paths(run: RunDir) -> Iterator[Path]:
    """Yield the paths without the needed access.

    New files are created in folders; the lock and logs are opened for writing; everything else is read or replaced.
    """
    folders = (run.checkpoints, run.attempts, run.progress, run.logs, *run.logs.glob("node-*"))
    evaluated = (run.evaluation("any").parent, run.attention, run.tensorboard, run.wandb_id.parent)
    needed = {
        _FOLDER_ACCESS: (*folders, *evaluated),
        os.W_OK: (run.lock, *run.logs.glob("node-*/*")),
        os.R_OK: (run.config, run.manifest, *run.checkpoints.glob("step-*/*")),
    }
    for access, paths in needed.items():
        yield from (path for path in paths if os.path.exists(path) and not os.access(path, access))


def check_code_is_private(run: RunDir, site: Site) -> Iterator[Problem]:
    """Check that only this user can write in the run directory of a batch job.

    The job runs a copy of the program from there.
    """
    if site.transport == "sbatch" and run.path.is_dir() and not is_private(status := run.path.stat()):
        details = f"it belongs to {user_name(status.st_uid)}, its mode is {stat.S_IMODE(status.st_mode):04o}"
        why = f"a batch job runs the copy of the program in this folder, and others can write there ({details})"
        yield Problem(str(run.path), f"{why}: `chmod go-w {run.path}` if it is yours, or choose another --run-dir")
