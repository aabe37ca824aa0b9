"""`fmfsd-launch stop`: asks a run to stop by a file in its folder, so that it works from every host that sees it."""

import time
from pathlib import Path

from fmfsd.errors import CheckError
from fmfsd.files import read_json
from fmfsd.rundir import RunDir
from launcher.ownership import Owner

LOOK_S = 0.2


def request_stop(folder: Path, *, wait: bool) -> str:
    """What to tell the user. Raises CheckError if no launch is at work there."""
    run, owner = RunDir(folder), Owner.of(RunDir(folder))
    if not run.config.exists():
        raise CheckError(f"{folder}: no run directory")
    if owner is None or (owner.is_here and not owner.is_known_to_live):
        raise CheckError(f"{folder}: no launch is at work there{f'; the last was {owner}' if owner else ''}")
    run.stop_request.touch(mode=0o600)
    if not wait:
        return f"asked to stop: {owner}"
    while owner.is_known_to_live or (not owner.is_here and run.stop_request.exists()):
        time.sleep(LOOK_S)
    return f"ended: {_state(run)}"


def _state(run: RunDir) -> str:
    try:
        return str(read_json(run.outcome)["state"])
    except (OSError, ValueError, KeyError):
        return "without an outcome"
