"""A network whose weights and batch statistics are the running average of another's.

The exponential average of SWA's authors' package: Izmailov et al. 2018 (arXiv:1803.05407), torch.optim.swa_utils.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Of each parameter and buffer: `decay` times the average plus the rest times what `update` is given.

    The first update is taken as it is; until then there is no average. Whole numbers (counts of batches) are averaged
    and cut. `network` is copied before it is wrapped for several workers, who all come to the same average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = deepcopy(network).eval()
        self.begun = False
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Without waiting for a GPU, as torch's AveragedModel does for its count of updates."""
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        for kind in dict.fromkeys(mine.dtype for mine, _ in pairs):
            mine, theirs = zip(*(pair for pair in pairs if pair[0].dtype == kind), strict=True)
            if self.begun:
                self._average(list(mine), list(theirs), 0)
            else:
                torch._foreach_copy_(list(mine), list(theirs))
        self.begun = True

    def state(self) -> dict[str, Tensor]:
        """By the names of the network's own; empty before the first update."""
        return self.network.state_dict() if self.begun else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """What `state` gave; an empty one begins anew."""
        self.begun = bool(state)
        if state:
            self.network.load_state_dict(state)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return (tensor.detach() for tensor in chain(network.parameters(), network.buffers()))
