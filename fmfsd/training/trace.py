"""What each step was made from and came to, for whoever compares runs: sample positions, and gradients."""

from typing import Protocol

import safetensors.torch

from fmfsd.data.loading.batches import TrainBatches
from fmfsd.engine.interface import Engine
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json, write_whole


class Trace(Protocol):
    """Is shown every batch that is trained on and, before the optimizer steps, the engine."""

    def batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None: ...

    def step(self, number: int, engine: Engine) -> None:
        """The run's step `number`, from 1, is made from the batches since the last one."""
        ...

    def forget(self) -> None:
        """The batches since the last step were none of a step's."""
        ...


class NoTrace:
    """Keeps nothing."""

    def batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None:
        pass

    def step(self, number: int, engine: Engine) -> None:
        pass

    def forget(self) -> None:
        pass


class WrittenTrace:
    """Files below `RUN/trace`: of every worker its samples' official positions, of rank 0 the gradients."""

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
            host = {
                name: value.detach().to("cpu", copy=True).contiguous() for name, value in engine.gradients().items()
            }
            write_whole(self._run.traced_gradients(number), safetensors.torch.save(host), durable=False)

    def forget(self) -> None:
        self._positions = []
