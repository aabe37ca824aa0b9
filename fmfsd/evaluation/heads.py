"""Each head, shallow to deep, and the ensemble, on every sample exactly once."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fmfsd.config import RunConfig
from fmfsd.data.loading.batches import EvaluationBatches
from fmfsd.data.loading.load_shards import own_shards
from fmfsd.data.shards.index import SetIndex
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.precision import DTYPES
from fmfsd.evaluation.accumulator import Evaluation, Tally
from fmfsd.evaluation.attention_masks import Watcher
from fmfsd.model.network import Outputs


class Predictor(Protocol):
    """What an engine is to those who only look."""

    head_names: tuple[str, ...]

    @property
    def evaluated(self) -> nn.Module: ...

    def predict(self, images: Tensor) -> Outputs: ...


def evaluate(
    engine: Predictor,
    batches: EvaluationBatches,
    comms: Comms,
    *,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[float], None] = lambda _done: None,
) -> Evaluation | None:
    """What all workers' samples come to; the metrics are `<head>_top1` of each head, `ensemble_top1` with more than
    one, `<head>_agreement`, how often it says what the deepest does, and `loss`, the deepest head's cross-entropy.

    Accuracies are fractions. None if any worker's `stop` came true on the way. `report` is called with the fraction
    that is done.
    """
    tally, watcher = Tally(engine.head_names, batches.num_classes, batches.device), Watcher()
    with watcher.watching(engine.evaluated):
        for number in range(len(batches)):
            images, labels = batches.at(number)
            if len(labels):
                outputs = engine.predict(images)
                tally.add(outputs, labels, watcher.last)
            if comms.any(stop()):
                return None
            report((number + 1) / len(batches))
    return tally.of_all(comms)


def evaluation_batches(
    config: RunConfig, index: SetIndex, split: str, comms: Comms, device: torch.device, in_files: bool
) -> EvaluationBatches:
    """This worker's part of a split; `in_files`: its images are read when they are needed."""
    return EvaluationBatches(
        own_shards(index, split, rank=comms.rank, world_size=comms.size, device=device, in_files=in_files),
        config.data,
        batch=config.train.evaluate_batch,
        largest_part=index.largest_part(split, comms.size),
        dtype=DTYPES[config.train.precision],
    )
