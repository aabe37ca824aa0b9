"""Small checkpoints, and a checkpoint manager whose saves are waited for."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fmfsd.checkpoint import CheckpointFolder, Checkpoints, Saved
from fmfsd.distributed.collectives import SoloComms
from fmfsd.engine.interface import EngineState
from fmfsd.run.train_position import Position


def saved(step: int, *, evaluated: bool = True, value: float = 1.0, score: float | None = None) -> Saved:
    weights = {"conv.weight": torch.full((2, 3), value + step).to(memory_format=torch.contiguous_format)}
    optimizer = {"conv.weight.momentum_buffer": torch.randn(2, 3)}
    progress = {"records": step, "means": {"sums": {"loss": 0.1 + 0.2}, "count": 1}}
    return Saved(Position(step, evaluated), EngineState(weights, optimizer), progress, score)


def store(folder: Path, *, keep: int = 2, require_ours: Callable[[], None] = lambda: None) -> Checkpoints:
    folder.mkdir(exist_ok=True)
    folder_store = CheckpointFolder(folder, keep=keep, require_ours=require_ours)
    return Checkpoints(folder_store, SoloComms(), warn=lambda text: None)


def save(checkpoints: Checkpoints, what: Saved) -> None:
    """Save a checkpoint and wait until it is written."""
    checkpoints.save(what)
    checkpoints.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest_step(checkpoints: Checkpoints) -> int:
    checkpoint = checkpoints.load_newest()
    assert checkpoint is not None
    return checkpoint.position.step


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
