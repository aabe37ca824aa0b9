"""Where a run is, and the name of a checkpoint of that moment."""

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})(-unevaluated)?")


@dataclass(frozen=True, order=True)
class Position:
    """`step` steps are done, and the evaluation that is due after them, if any, is too or not yet."""

    step: int = 0
    evaluated: bool = True

    @property
    def folder_name(self) -> str:
        return f"step-{self.step:08d}{'' if self.evaluated else '-unevaluated'}"

    @classmethod
    def named(cls, folder_name: str) -> "Position | None":
        """The position whose checkpoint has this name; None if no checkpoint has."""
        match = _NAME.fullmatch(folder_name)
        return cls(int(match[1]), match[2] is None) if match else None


def positions_in(folder: Path) -> list[Position]:
    """Of the checkpoints in `folder`, newest first; whether they are whole is not looked at."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(filter(None, map(Position.named, names)), reverse=True)
