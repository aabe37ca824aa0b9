"""Small checkpoints, and a checkpoint manager whose saves are waited for."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fmfsd.checkpoint import Checkpoint, CheckpointManager, CheckpointStore
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.engine.interface import EngineState
from fmfsd.run.train_position import TrainPosition


def make_checkpoint(step: int, *, evaluated: bool = True, value: float = 1.0, score: float | None = None) -> Checkpoint:
    weights = {"conv.weight": torch.full((2, 3), value + step).to(memory_format=torch.contiguous_format)}
    optimizer = {"conv.weight.momentum_buffer": torch.randn(2, 3)}
    progress = {"records": step, "means": {"sums": {"loss": 0.1 + 0.2}, "count": 1}}
    return Checkpoint(TrainPosition(step, evaluated), EngineState(weights, optimizer), progress, score)


def make_manager(folder: Path, *, keep: int = 2, require_ours: Callable[[], None] = lambda: None) -> CheckpointManager:
    folder.mkdir(exist_ok=True)
    folder_store = CheckpointStore(folder, keep=keep, check_fence=require_ours)
    return CheckpointManager(folder_store, SingleWorkerComms(), warn=lambda text: None)


def save_and_wait(checkpoints: CheckpointManager, what: Checkpoint) -> None:
    """Save a checkpoint and wait until it is written."""
    checkpoints.save(what)
    checkpoints.finish()


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest_step(checkpoints: CheckpointManager) -> int:
    checkpoint = checkpoints.load_newest()
    assert checkpoint is not None
    return checkpoint.position.step


def raise_no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
