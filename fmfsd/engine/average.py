"""A network whose weights and batch statistics are the running average of another's.

The exponential average of SWA's authors' package: Izmailov et al. 2018 (arXiv:1803.05407), torch.optim.swa_utils.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Of each parameter and buffer: `decay` times the average plus the rest times what `update` is given.

    The first update is taken as it is; until then there is no average. Whole numbers (counts of batches) are averaged
    and cut. `network` is copied before it is wrapped for several workers, who all come to the same average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).eval()
        self.network: nn.Module = self._averaged.module

    @property
    def begun(self) -> bool:
        """Its count lies on the CPU: asking waits for no GPU."""
        return bool(self._averaged.n_averaged > 0)

    def update(self, network: nn.Module) -> None:
        self._averaged.update_parameters(network)

    def state(self) -> dict[str, Tensor]:
        """By the names of the network's own; empty before the first update."""
        return self.network.state_dict() if self.begun else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """What `state` gave; an empty one begins anew."""
        self._averaged.n_averaged.fill_(int(bool(state)))
        if state:
            self.network.load_state_dict(state)
