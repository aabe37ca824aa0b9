"""Exponential moving average (EMA) of a network's weights and batch statistics.

Computed as in torch.optim.swa_utils (Izmailov et al. 2018, arXiv:1803.05407).
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightEMA:
    """EMA of each parameter and buffer: average = decay * average + (1 - decay) * value.

    The first update copies the values; before it there is no average. Integers (counts of batches) are averaged and
    truncated. `network` is copied before it is wrapped for several workers; all workers compute the same average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = deepcopy(network).eval()
        self.has_average = False
        self._update_average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average, without a GPU synchronisation (torch's AveragedModel has one for its update count)."""
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        for dtype in dict.fromkeys(average.dtype for average, _ in pairs):
            averages, values = zip(*(pair for pair in pairs if pair[0].dtype == dtype), strict=True)
            if self.has_average:
                self._update_average(list(averages), list(values), 0)
            else:
                torch._foreach_copy_(list(averages), list(values))
        self.has_average = True

    def state(self) -> dict[str, Tensor]:
        """Return the averages under the network's own names; empty before the first update."""
        return self.network.state_dict() if self.has_average else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore a result of `state`; an empty one resets the average."""
        self.has_average = bool(state)
        if state:
            self.network.load_state_dict(state)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return (tensor.detach() for tensor in chain(network.parameters(), network.buffers()))
