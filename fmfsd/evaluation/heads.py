"""Evaluation of each head, shallow to deep, and of the ensemble, on every sample exactly once."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fmfsd.config import RunConfig
from fmfsd.data.loading.batches import EvaluationBatches
from fmfsd.data.loading.load_shards import open_worker_shards
from fmfsd.data.shards.index import SetIndex
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.precision import DTYPES
from fmfsd.evaluation.accumulator import Evaluation, EvaluationAccumulator
from fmfsd.evaluation.attention_masks import AttentionRecorder
from fmfsd.model.network import Outputs


class Predictor(Protocol):
    """The part of an engine that evaluation needs."""

    head_names: tuple[str, ...]

    @property
    def evaluated_network(self) -> nn.Module: ...

    def predict(self, images: Tensor) -> Outputs: ...


def evaluate(
    engine: Predictor,
    batches: EvaluationBatches,
    comms: Comms,
    *,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[float], None] = lambda _done: None,
) -> Evaluation | None:
    """Evaluate the samples of all workers.

    Metrics: `<head>_top1` of each head and, with more than one, `ensemble_top1`; `<head>_agreement`, how often the head
    agrees with the deepest; `loss`, the deepest head's cross-entropy. Accuracies are fractions. Returns None if `stop`
    became true on any worker. `report` is called with the fraction that is done.
    """
    accumulator, recorder = (
        EvaluationAccumulator(engine.head_names, batches.num_classes, batches.device),
        AttentionRecorder(),
    )
    with recorder.recording(engine.evaluated_network):
        for number in range(len(batches)):
            images, labels = batches.load_batch(number)
            if len(labels):
                outputs = engine.predict(images)
                accumulator.add(outputs, labels, recorder.last)
            if comms.any(stop()):
                return None
            report((number + 1) / len(batches))
    return accumulator.compute(comms)


def evaluation_batches(
    config: RunConfig, index: SetIndex, split: str, comms: Comms, device: torch.device, in_files: bool
) -> EvaluationBatches:
    """Return the batches of this worker's part of a split; `in_files`: read images from disk batch by batch."""
    return EvaluationBatches(
        open_worker_shards(index, split, rank=comms.rank, world_size=comms.size, device=device, stream=in_files),
        config.data,
        batch=config.train.evaluate_batch,
        largest_part=index.max_worker_samples(split, comms.size),
        dtype=DTYPES[config.train.precision],
    )
