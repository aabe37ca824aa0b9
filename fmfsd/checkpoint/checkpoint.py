"""A checkpoint in memory, and as the bytes of its files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
from torch import Tensor

from fmfsd.engine.interface import EngineState
from fmfsd.errors import NonFiniteLossError
from fmfsd.run.train_position import Position

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Saved:
    """A run's whole state at `position`. `progress` is what else the trainer needs, of JSON types.

    There is no state of a random generator to keep: order and augmentation are functions of (seed, epoch, shard), and
    nothing else draws. `score` is what the best checkpoint has most of; None where nothing was validated.
    """

    position: Position
    engine: EngineState
    progress: dict[str, Any]
    score: float | None = None

    def staged(self) -> "Saved":
        """A copy in this process's own memory, which training on leaves alone."""
        engine = EngineState(_copied(self.engine.model), _copied(self.engine.optimizer))
        return replace(self, engine=engine, progress=json.loads(json.dumps(self.progress)))

    def contents(self) -> dict[str, bytes]:
        """Each file's content."""
        place = {"step": self.position.step, "evaluated": self.position.evaluated}
        state = json.dumps({"position": place, "score": self.score, "progress": self.progress}, indent=2).encode()
        tensors = (safetensors.torch.save(part) for part in (self.engine.model, self.engine.optimizer))
        return dict(zip(FILES, (*tensors, state), strict=True))

    @classmethod
    def of(cls, contents: Mapping[str, bytes]) -> "Saved":
        """What `contents()` came from."""
        state = json.loads(contents["state.json"])
        model, optimizer = (safetensors.torch.load(contents[name]) for name in FILES[:2])
        return cls(Position(**state["position"]), EngineState(model, optimizer), state["progress"], state["score"])

    def require_finite(self) -> None:
        """Raises NonFiniteLossError rather than keep NaN."""
        broken = next(_not_finite(self.engine), None)
        if broken is not None:
            raise NonFiniteLossError(
                f"{broken} has NaN or infinite values after step {self.position.step}, so no checkpoint was written: "
                "lower optim.lr, set optim.clip_norm, or set train.precision to fp32"
            )


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _not_finite(state: EngineState) -> Iterator[str]:
    for name, tensor in (*state.model.items(), *state.optimizer.items()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            yield name
