"""Each head, shallow to deep, and the ensemble, on every sample exactly once."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from fmfsd.attention import Watcher
from fmfsd.comms import Comms
from fmfsd.data.batches import EvaluationBatches
from fmfsd.model.network import Outputs
from fmfsd.tally import Evaluation, Tally


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
