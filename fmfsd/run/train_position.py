"""Training position of a run, and the folder name of the checkpoint at that position."""

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})(-unevaluated)?")


@dataclass(frozen=True, order=True)
class TrainPosition:
    """Training position: the number of finished steps, and whether the evaluation due after them, if any, is done."""

    step: int = 0
    evaluated: bool = True

    @property
    def folder_name(self) -> str:
        return f"step-{self.step:08d}{'' if self.evaluated else '-unevaluated'}"

    @classmethod
    def from_folder_name(cls, folder_name: str) -> "TrainPosition | None":
        """Return the position of the checkpoint with this folder name; None if it is not a checkpoint's name."""
        match = _NAME.fullmatch(folder_name)
        return cls(int(match[1]), match[2] is None) if match else None


def list_positions(folder: Path) -> list[TrainPosition]:
    """Return the positions of the checkpoints in `folder`, newest first; does not verify the checkpoints."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(filter(None, map(TrainPosition.from_folder_name, names)), reverse=True)
