"""What a run's first weights can come from, if not from its seed: a run, a checkpoint, a file. No torch."""

from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import Position, positions_in

KEY = "train.init_from"
SUFFIX = ".safetensors"


def weights_at(origin: str) -> list[Path]:
    """The checkpoints, newest first, or the one file of weights at `origin`; whether they are whole is not looked at.

    Raises CheckError if there is nothing to begin with.
    """
    path = Path(origin)
    try:
        found = _checkpoints(path) if path.is_dir() else [path] if path.is_file() and path.suffix == SUFFIX else []
        if not found:
            raise CheckError([Problem(KEY, f"{path} {_why_not(path)}")])
    except OSError as error:
        raise CheckError([Problem(KEY, f"{path} can't be read: {error.strerror}")]) from error
    return found


def _checkpoints(path: Path) -> list[Path]:
    """Of the run in `path`, or `path` itself."""
    checkpoints = RunDir(path).checkpoints
    return (
        [path] if Position.named(path.name) else [checkpoints / each.folder_name for each in positions_in(checkpoints)]
    )


def _why_not(path: Path) -> str:
    expected = f"expected a run's folder with a checkpoint, a checkpoint's folder (step-...), or a {SUFFIX} file"
    if path.is_dir():
        return f"has no checkpoint: {expected}"
    return f"is no {SUFFIX} file: {expected}" if path.exists() else f"does not exist: {expected}"
