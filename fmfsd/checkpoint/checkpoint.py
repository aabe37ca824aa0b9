"""A checkpoint in memory, and its conversion to and from files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
from torch import Tensor

from fmfsd.engine.interface import EngineState
from fmfsd.errors import NonFiniteLossError
from fmfsd.run.train_position import TrainPosition

CHECKPOINT_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """The complete state of a run at `position`. `progress` is the trainer's further state, of JSON types.

    No random generator state is needed: sampling order and augmentation are functions of (seed, epoch, shard), and
    nothing else is random. `score` selects the best checkpoint (higher is better); None without a validation.
    """

    position: TrainPosition
    engine: EngineState
    progress: dict[str, Any]
    score: float | None = None

    def copy_to_cpu(self) -> "Checkpoint":
        """Return a copy in CPU memory, which further training does not change."""
        engine = EngineState(_copy_to_cpu(self.engine.model), _copy_to_cpu(self.engine.optimizer))
        return replace(self, engine=engine, progress=json.loads(json.dumps(self.progress)))

    def to_files(self) -> dict[str, bytes]:
        """Return the content of each file."""
        position = {"step": self.position.step, "evaluated": self.position.evaluated}
        state = json.dumps({"position": position, "score": self.score, "progress": self.progress}, indent=2).encode()
        tensors = (safetensors.torch.save(part) for part in (self.engine.model, self.engine.optimizer))
        return dict(zip(CHECKPOINT_FILES, (*tensors, state), strict=True))

    @classmethod
    def from_files(cls, contents: Mapping[str, bytes]) -> "Checkpoint":
        """Return the checkpoint that `to_files()` returned the files of."""
        state = json.loads(contents["state.json"])
        model, optimizer = (safetensors.torch.load(contents[name]) for name in CHECKPOINT_FILES[:2])
        return cls(TrainPosition(**state["position"]), EngineState(model, optimizer), state["progress"], state["score"])

    def require_finite(self) -> None:
        """Raise NonFiniteLossError if a tensor has NaN or infinite values."""
        name = next(_non_finite_names(self.engine), None)
        if name is not None:
            raise NonFiniteLossError(
                f"{name} has NaN or infinite values after step {self.position.step}, so no checkpoint was written: "
                "lower optim.lr, set optim.clip_norm, or set train.precision to fp32"
            )


def _copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _non_finite_names(state: EngineState) -> Iterator[str]:
    for name, tensor in (*state.model.items(), *state.optimizer.items()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            yield name
