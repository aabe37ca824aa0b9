"""Each head, shallow to deep, and the ensemble, on every sample exactly once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fmfsd.comms import Comms
from fmfsd.data.batches import EvaluationBatches
from fmfsd.engine.base import Engine
from fmfsd.model.network import Outputs, ensemble


def evaluate(
    engine: Engine,
    batches: EvaluationBatches,
    comms: Comms,
    *,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[float], None] = lambda _done: None,
) -> dict[str, float]:
    """`<head>_top1` of each head, `ensemble_top1` with more than one, and `loss`, the deepest head's cross-entropy.

    Accuracies are fractions of all workers' samples. Empty if any worker's `stop` came true on the way. `report` is
    called with the fraction that is done.
    """
    names = [f"{name}_top1" for name in engine.head_names]
    shown = [*names, "ensemble_top1"] if len(names) > 1 else names
    sums = torch.zeros(len(names) + 3, dtype=torch.float64, device=batches.device)
    for number in range(len(batches)):
        images, labels = batches.at(number)
        if len(labels):
            sums += _counts(engine.predict(images), labels)
        if comms.any(stop()):
            return {}
        report((number + 1) / len(batches))
    *correct, loss, seen = comms.sum_(sums).tolist()
    return {**{name: hits / seen for name, hits in zip(shown, correct, strict=False)}, "loss": loss / seen}


def _counts(outputs: Outputs, labels: Tensor) -> Tensor:
    """Correct predictions of each head and the ensemble, the summed loss of the deepest head, samples seen."""
    logits = [head.double() for head in outputs.logits]
    correct = [(head.argmax(dim=1) == labels).sum() for head in (*logits, ensemble(logits))]
    loss = F.cross_entropy(logits[-1], labels, reduction="sum")
    return torch.stack([*(count.double() for count in correct), loss, loss.new_tensor(len(labels))])
