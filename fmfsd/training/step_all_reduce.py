"""One small all-reduce per forward pass: squares for the feature norm, losses, NaN check, stop and save flags."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fmfsd.distributed.collectives import Comms
from fmfsd.losses import LossTerms

READ_DELAY_PASSES = {"cpu": 0, "cuda": 10}
"""Number of passes after which the host reads a result: on a GPU, reading at once would synchronize every step."""


@dataclass(frozen=True)
class StepResult:
    """Result of all workers for the step that follows `step` finished ones; losses are means over the global batch."""

    step: int
    label: float
    soft_target: float
    feature: float
    stop: bool
    save: bool
    finite: bool

    def losses(self) -> dict[str, float]:
        """Return the losses by the names used in metrics.jsonl."""
        total = self.label + self.soft_target + self.feature
        return {
            "loss": total,
            "loss_label": self.label,
            "loss_soft_target": self.soft_target,
            "loss_feature": self.feature,
        }


@dataclass(frozen=True)
class _Pending:
    step: int
    values: Tensor
    ready: torch.cuda.Event | None


class StepAllReduce:
    """All-reduces the loss terms of each pass: the feature norm is used on the device, the rest is read later."""

    def __init__(self, comms: Comms, device: torch.device, *, beta: float) -> None:
        self._comms, self._device, self._beta = comms, device, beta
        self._delay = READ_DELAY_PASSES[device.type]
        self._pending: deque[_Pending] = deque()

    def all_reduce(self, step: int, terms: LossTerms, *, stop: bool, save: bool) -> Tensor:
        """Return the squares of the feature norm, summed over all workers, (F,), without gradient.

        `stop`, `save`: this worker requests a stop or a checkpoint.
        """
        flags = [terms.label.new_full((1,), float(flag)) for flag in (stop, save)]
        means = [each.view(1) for each in (terms.label, terms.soft_target, terms.feature)]
        packed = torch.cat([terms.squares_F, *means, *flags]).detach()
        self._comms.all_reduce_(packed)
        self._pending.append(self._pending_result(step, packed))
        return packed[: len(terms.squares_F)]

    def pop_results(self, *, wait: bool = False) -> Iterator[StepResult]:
        """Yield the results that are due; `wait`: all results, waiting for the device."""
        while len(self._pending) > (0 if wait else self._delay):
            pending = self._pending.popleft()
            if pending.ready is not None:
                with self._comms.activity.measure_call():
                    pending.ready.synchronize()
            yield self._to_result(pending)

    def clear(self) -> None:
        """Drop the results that were not read yet."""
        self._pending.clear()

    def _pending_result(self, step: int, packed: Tensor) -> _Pending:
        if self._device.type != "cuda":
            return _Pending(step, packed.clone(), None)
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return _Pending(step, host, ready)

    def _to_result(self, pending: _Pending) -> StepResult:
        *squares, label, soft_target, feature, stop, save = pending.values.tolist()
        norms = sum(max(square, 0.0) ** 0.5 for square in squares)
        return StepResult(
            step=pending.step,
            label=label / self._comms.size,
            soft_target=soft_target / self._comms.size,
            feature=feature / self._comms.size + self._beta * norms,
            stop=stop > 0,
            save=save > 0,
            finite=bool(pending.values.isfinite().all()),
        )
