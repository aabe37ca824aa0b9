"""A plain training loop over this project's network, loss and batches, on one CPU core."""

from typing import Any

import torch

from fmfsd.config import RunConfig, TrainSchedule
from fmfsd.data.loading.batches import EvaluationBatches, TrainBatches
from fmfsd.data.loading.shards_in_memory import load_worker_shards
from fmfsd.data.shards.index import prepared_set_folder, read_index
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.engine.build import build_loss
from fmfsd.engine.precision import DTYPES, configure_arithmetic
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.evaluation.heads import evaluate, evaluation_batches
from fmfsd.model.build import build_network
from fmfsd.optim import learning_rate


class PlainTrial:
    """Trains the config's network with its loss and batches; `steps` is the number of steps in all."""

    def __init__(self, config: RunConfig) -> None:
        configure_arithmetic(deterministic=False)
        self._config, self._device = config, torch.device("cpu")
        self._index = read_index(prepared_set_folder(config.data))
        self._timeline = TrainSchedule.from_config(config, self._index.num_samples("train"))
        self._loss, self.steps = build_loss(config), self._timeline.total_steps
        self._engine = TorchEngine(build_network(config), self._loss, config, SingleWorkerComms(), self._device)
        self._batches = TrainBatches(
            load_worker_shards(self._index, "train", rank=0, world_size=1),
            config.data,
            seed=config.seed,
            per_shard=config.micro_batch // config.data.shards,
            dtype=DTYPES[config.train.precision],
        )

    def step(self, number: int) -> float:
        """Train one step and return its loss."""
        images, labels = self._batches.load_batch(*divmod(number, self._timeline.steps_per_epoch))
        terms = self._engine.compute_terms(images, labels)
        total = self._loss.total(terms, terms.squares_F, world_size=1)
        total.backward()
        self._engine.step(self._learning_rate(number))
        return float(total.detach())

    def _learning_rate(self, number: int) -> float:
        """Return the learning rate of the config's schedule."""
        line, optim = self._timeline, self._config.optim
        return learning_rate(
            number,
            base=self._config.peak_lr,
            gamma=optim.gamma,
            milestones=line.milestones,
            warmup_steps=line.warmup_steps,
        )

    def evaluate(self, split: str) -> dict[str, float]:
        """Return the accuracies on a split."""
        batches: EvaluationBatches = evaluation_batches(
            self._config, self._index, split, SingleWorkerComms(), self._device, False
        )
        result = evaluate(self._engine, batches, SingleWorkerComms())
        assert result is not None
        return result.metrics

    def state(self) -> dict[str, Any]:
        return {"network": self._engine.network.state_dict(), "optimizer": self._engine.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self._engine.network.load_state_dict(state["network"])
        self._engine.optimizer.load_state_dict(state["optimizer"])
