"""A run's state on disk: whole or absent, verified before it is used, without pickles.

A checkpoint is a folder `step-...` of safetensors, JSON and a manifest with every file's SHA-256 sum. It is written
under another name, flushed, and renamed.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fmfsd.comms import Comms
from fmfsd.engine.base import EngineState
from fmfsd.errors import CheckpointError, NoCheckpointError, NonFiniteLossError
from fmfsd.files import read_json, sync_folder, write_json, write_whole

log = logging.getLogger(__name__)
CHECKPOINT_FORMAT = 1
_NAME = re.compile(r"step-([0-9]{8,})(-unevaluated)?")
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True, order=True)
class Position:
    """Where a run is: `step` steps are done, and the evaluation that is due after them, if any, is too or not yet."""

    step: int = 0
    evaluated: bool = True

    @property
    def folder_name(self) -> str:
        return f"step-{self.step:08d}{'' if self.evaluated else '-unevaluated'}"


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory. `progress` is what else the trainer needs, of JSON types."""

    position: Position
    engine: EngineState
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints in `folder`. Rank 0 writes and chooses; every worker makes every call."""

    def __init__(self, folder: Path, comms: Comms, *, keep: int) -> None:
        self._folder, self._comms, self._keep = folder, comms, keep

    def save(self, saved: Saved) -> None:
        """Make `saved` the newest checkpoint.

        Raises NonFiniteLossError rather than keep NaN, and CheckpointError if it can't be written.
        """
        _require_finite(saved)
        if self._comms.rank == 0 and not (self._folder / saved.position.folder_name).exists():
            try:
                self._write(saved)
                self._prune()
            except OSError as error:
                raise CheckpointError(f"{self._folder}: step {saved.position.step} not saved: {error}") from error
        self._comms.any(False)  # nobody goes on before the checkpoint is there

    def load_newest(self) -> Saved | None:
        """The newest checkpoint that verifies, the same one on every worker; None if there is none at all.

        Damaged ones that are newer are set aside, so that they neither block nor outlive their successors.
        Raises NoCheckpointError if there are some but none can be used.
        """
        name = self._comms.share(self._choose() if self._comms.rank == 0 else None)
        if name == "":
            raise NoCheckpointError(
                f"{self._folder}: no checkpoint there can be used; the log of rank 0 names each one's damage. To begin "
                "again, choose another --run-dir"
            )
        return None if name is None else _read(self._folder / name)

    def _choose(self) -> str | None:
        """The name of the newest checkpoint that verifies; "" if none does, None if there is none."""
        for scratch in self._folder.glob(".tmp-*"):
            shutil.rmtree(scratch)
        found = _positions(self._folder)
        for number, position in enumerate(found):
            try:
                _verified(self._folder / position.folder_name)
            except CheckpointError as error:
                log.warning("%s; trying the one before", error)
            else:
                self._set_aside(found[:number])
                return position.folder_name
        return "" if found else None

    def _set_aside(self, damaged: list[Position]) -> None:
        for position in damaged:
            name = f"damaged-{position.folder_name}-{time.time_ns()}"
            os.rename(self._folder / position.folder_name, self._folder / name)
            log.warning("the damaged checkpoint is kept as %s", self._folder / name)

    def _write(self, saved: Saved) -> None:
        scratch = self._folder / f".tmp-{saved.position.folder_name}-{os.getpid()}"
        scratch.mkdir()
        contents = (_tensor_bytes(saved.engine.model), _tensor_bytes(saved.engine.optimizer), _state_bytes(saved))
        manifest = {}
        for name, content in zip(_FILES, contents, strict=True):
            write_whole(scratch / name, content)
            manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_json(scratch / "manifest.json", {"format": CHECKPOINT_FORMAT, "files": manifest})
        os.rename(scratch, self._folder / saved.position.folder_name)
        sync_folder(self._folder)

    def _prune(self) -> None:
        for position in _positions(self._folder)[self._keep :]:
            scratch = self._folder / f".tmp-old-{position.folder_name}"
            os.rename(self._folder / position.folder_name, scratch)
            shutil.rmtree(scratch)


def _positions(folder: Path) -> list[Position]:
    """Of the checkpoints in `folder`, newest first."""
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted((Position(int(match[1]), match[2] is None) for match in names if match), reverse=True)


def _verified(folder: Path) -> dict[str, bytes]:
    """Every file's content. Raises CheckpointError unless all are there and as the manifest says."""
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(f"format {manifest.get('format')}, expected {CHECKPOINT_FORMAT}")
        contents = {name: (folder / name).read_bytes() for name in _FILES}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
                raise ValueError(f"{name} is not what the manifest says")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error
    return contents


def _read(folder: Path) -> Saved:
    contents = _verified(folder)
    state = json.loads(contents["state.json"])
    model, optimizer = (safetensors.torch.load(contents[name]) for name in _FILES[:2])
    return Saved(Position(**state["position"]), EngineState(model, optimizer), state["progress"])


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _state_bytes(saved: Saved) -> bytes:
    position = {"step": saved.position.step, "evaluated": saved.position.evaluated}
    return json.dumps({"position": position, "progress": saved.progress}, indent=2).encode()


def _require_finite(saved: Saved) -> None:
    broken = next(_not_finite(saved.engine), None)
    if broken is not None:
        raise NonFiniteLossError(
            f"{broken} has NaN or infinite values after step {saved.position.step}, so no checkpoint was written: "
            "lower optim.lr, set optim.clip_norm, or set train.precision to fp32"
        )


def _not_finite(state: EngineState) -> Iterator[str]:
    for name, tensor in (*state.model.items(), *state.optimizer.items()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            yield name
