"""Sources of initial weights (train.init_from): a run, a checkpoint, or a file. Needs no torch."""

from pathlib import Path

from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import TrainPosition, list_positions

INIT_FROM_KEY = "train.init_from"
WEIGHTS_SUFFIX = ".safetensors"


def find_weights(source: str) -> list[Path]:
    """Return the checkpoints at `source`, newest first, or the one file of weights; does not verify them.

    Raises CheckError if there are none.
    """
    path = Path(source)
    try:
        paths = (
            _list_checkpoints(path)
            if path.is_dir()
            else [path]
            if path.is_file() and path.suffix == WEIGHTS_SUFFIX
            else []
        )
        if not paths:
            raise CheckError([Problem(INIT_FROM_KEY, f"{path} {_describe_problem(path)}")])
    except OSError as error:
        raise CheckError([Problem(INIT_FROM_KEY, f"{path} can't be read: {error.strerror}")]) from error
    return paths


def _list_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints of the run in `path`, or `path` itself if it is a checkpoint."""
    checkpoints = RunDir(path).checkpoints
    return (
        [path]
        if TrainPosition.from_folder_name(path.name)
        else [checkpoints / position.folder_name for position in list_positions(checkpoints)]
    )


def _describe_problem(path: Path) -> str:
    expected = (
        f"expected a run's folder with a checkpoint, a checkpoint's folder (step-...), or a {WEIGHTS_SUFFIX} file"
    )
    if path.is_dir():
        return f"has no checkpoint: {expected}"
    return f"is not a {WEIGHTS_SUFFIX} file: {expected}" if path.exists() else f"does not exist: {expected}"
