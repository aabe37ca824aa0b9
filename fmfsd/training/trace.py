"""Traces of steps for comparing runs: the positions of the samples, and the gradients."""

from typing import Protocol

import safetensors.torch

from fmfsd.data.loading.batches import TrainBatches
from fmfsd.engine.interface import Engine
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_atomic, write_json


class Trace(Protocol):
    """Records every training batch, and the engine's gradients before the optimizer's step."""

    def record_batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None: ...

    def record_step(self, number: int, engine: Engine) -> None:
        """Record step `number` (from 1), which consists of the batches since the previous step."""
        ...

    def clear(self) -> None:
        """Drop the batches since the last step: they belong to no step (warm-up)."""
        ...


class NoTrace:
    """Records nothing."""

    def record_batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None:
        pass

    def record_step(self, number: int, engine: Engine) -> None:
        pass

    def clear(self) -> None:
        pass


class TraceWriter:
    """Writes to `RUN/trace`: each worker the official positions of its samples, rank 0 the gradients."""

    def __init__(self, run: RunDir, rank: int) -> None:
        self._run, self._rank = run, rank
        self._positions: list[int] = []
        run.trace.mkdir(exist_ok=True, mode=0o700)

    def record_batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None:
        self._positions += batches.ids(epoch, micro_step).tolist()

    def record_step(self, number: int, engine: Engine) -> None:
        write_json(self._run.trace_samples(number, self._rank), {"positions": self._positions}, durable=False)
        self.clear()
        if self._rank == 0:
            gradients = {
                name: value.detach().to("cpu", copy=True).contiguous() for name, value in engine.gradients().items()
            }
            write_atomic(self._run.trace_gradients(number), safetensors.torch.save(gradients), durable=False)

    def clear(self) -> None:
        self._positions = []
