"""Self-distillation around anybody's network, for anybody's training loop."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from fmfsd.distill import SelfDistillLoss
from fmfsd.errors import ConfigError
from fmfsd.model.branch import branch_form
from fmfsd.model.build import initialise, sem_groups
from fmfsd.model.fusion import fusion_of
from fmfsd.model.hooked import hooked
from fmfsd.model.network import Outputs, SideFusionNetwork


class SelfDistillation(nn.Module):
    """FMFSD beside `backbone` (model.fusion: side), which computes what it did: its maps are seen by forward hooks.

    `branches` name the submodules that branches leave from and `deepest` the one with the last map, shallow to deep.
    The backbone's own classifier is not asked, and gets no gradients: under DistributedDataParallel replace it by
    `nn.Identity()`. For one worker: with several, each takes the feature term over its own part of the batch.
    """

    def __init__(
        self,
        backbone: nn.Module,
        branches: Sequence[str],
        *,
        deepest: str,
        num_classes: int,
        size: int,
        alpha: float = 0.3,
        beta: float = 0.03,
        temperature: float = 3.0,
    ) -> None:
        """`size` is the side of the images in pixels; the weights of the loss are those of SelfDistillLoss.

        ConfigError, with everything that is wrong, for submodules that give no maps or no branch at all.
        """
        super().__init__()
        if not branches:
            raise ConfigError("branches: none named: name one or more submodules before the deepest")
        trunk = hooked(backbone, [*branches, deepest], size)
        taps, groups = trunk.places[:-1], sem_groups("auto", [place.channels for place in trunk.places])
        fusion = partial(fusion_of, sem="sge", masks="averaged", groups=groups)
        self.network = SideFusionNetwork(
            trunk,
            taps,
            branch_form("sepconv", groups=groups),
            fusion,
            num_classes=num_classes,
            groups=groups,
            features=beta > 0,
        )
        initialise(*(child for child in self.network.children() if child is not trunk))
        self.head_names = self.network.head_names
        self._loss = SelfDistillLoss(alpha=alpha, beta=beta, temperature=temperature)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, size, size), as the backbone wants them -> logits (B, K) of every head, the deepest last."""
        outputs: Outputs = self.network(images)
        return outputs.logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """What to differentiate, of labels (B,) or shares (B, K).

        The feature term has its gradient, and half its value: see `global_norm_surrogate`.
        """
        terms = self._loss.terms(self.network(images), labels)
        return self._loss.total(terms, terms.squares_F.detach(), world_size=1)
