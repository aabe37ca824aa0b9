"""Which checkpoints are kept: the newest ones and the best one. The others are deleted."""

import os
import shutil
from pathlib import Path

from fmfsd.run.train_position import TrainPosition, list_positions
from fmfsd.system.atomic_files import read_json


def delete_old_checkpoints(folder: Path, *, keep: int) -> None:
    """Delete all checkpoints in `folder` except the `keep` newest and the best. OSError if one can't be deleted."""
    positions = list_positions(folder)
    for position in set(positions[keep:]) - {find_best(folder, positions)}:
        scratch = folder / f".tmp-old-{position.folder_name}"
        os.rename(folder / position.folder_name, scratch)
        shutil.rmtree(scratch)


def find_best(folder: Path, positions: list[TrainPosition]) -> TrainPosition | None:
    """Return the earliest position with the highest score; None without scores."""
    scores = {position: read_score(folder / position.folder_name) for position in reversed(positions)}
    validated = {position: score for position, score in scores.items() if score is not None}
    return max(validated, key=validated.__getitem__, default=None)


def read_score(checkpoint: Path) -> float | None:
    """Return the score of a checkpoint. OSError if it can't be read now, because it may be the best."""
    try:
        score = read_json(checkpoint / "state.json").get("score")
    except ValueError:
        return None
    return score if isinstance(score, float) else None
