"""Traces of steps for comparing runs: the positions of the samples, and the gradients."""

from typing import Protocol

import safetensors.torch

from fmfsd.data.loading.batches import TrainBatches
from fmfsd.engine.interface import Engine
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json, write_whole


class Trace(Protocol):
    """Records every training batch, and the engine's gradients before the optimizer's step."""

    def batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None: ...

    def step(self, number: int, engine: Engine) -> None:
        """Record step `number` (from 1), which consists of the batches since the previous step."""
        ...

    def forget(self) -> None:
        """Drop the batches since the last step: they belong to no step (warm-up)."""
        ...


class NoTrace:
    """Records nothing."""

    def batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None:
        pass

    def step(self, number: int, engine: Engine) -> None:
        pass

    def forget(self) -> None:
        pass


class WrittenTrace:
    """Writes to `RUN/trace`: each worker the official positions of its samples, rank 0 the gradients."""

    def __init__(self, run: RunDir, rank: int) -> None:
        self._run, self._rank = run, rank
        self._positions: list[int] = []
        run.trace.mkdir(exist_ok=True, mode=0o700)

    def batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None:
        self._positions += batches.ids(epoch, micro_step).tolist()

    def step(self, number: int, engine: Engine) -> None:
        write_json(self._run.traced_samples(number, self._rank), {"positions": self._positions}, durable=False)
        self.forget()
        if self._rank == 0:
            gradients = {
                name: value.detach().to("cpu", copy=True).contiguous() for name, value in engine.gradients().items()
            }
            write_whole(self._run.traced_gradients(number), safetensors.torch.save(gradients), durable=False)

    def forget(self) -> None:
        self._positions = []
