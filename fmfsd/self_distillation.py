"""Self-distillation as a module for any backbone and any training loop."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from fmfsd.distributed.process_group import all_reduce_over_default_group
from fmfsd.errors import ConfigError, Problem
from fmfsd.losses import SelfDistillLoss
from fmfsd.model.branch import build_branch_type
from fmfsd.model.build import choose_sem_groups, initialise_weights
from fmfsd.model.fusion import build_fusion
from fmfsd.model.hooked_trunk import build_hooked_trunk
from fmfsd.model.network import Outputs, SideFusionNetwork


class SelfDistillation(nn.Module):
    """FMFSD branches on an unchanged `backbone` (model.fusion: side); forward hooks read its feature maps.

    `branches` name the submodules whose outputs feed the branches, shallow to deep, and `deepest` the submodule with
    the last map. The backbone's own classifier is not used and gets no gradients: under DistributedDataParallel replace
    it by `nn.Identity()`, and wrap a module whose `forward` returns `loss(images, labels)`, because
    DistributedDataParallel averages the gradients of its own forward pass only.
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
        """Build the branches. `size` is the image side in pixels; alpha, beta, temperature as in SelfDistillLoss.

        Raises ConfigError with all problems: values out of range, no or repeated branches, submodules whose output is
        not a feature map.
        """
        super().__init__()
        values = _check_ranges(num_classes=num_classes, size=size, alpha=alpha, beta=beta, temperature=temperature)
        if problems := [*_check_branches(branches, deepest), *values]:
            raise ConfigError(problems)
        trunk = build_hooked_trunk(backbone, [*branches, deepest], size)
        taps, groups = trunk.tap_points[:-1], choose_sem_groups("auto", [place.channels for place in trunk.tap_points])
        fusion = partial(build_fusion, sem="sge", masks="averaged", groups=groups)
        self.network = SideFusionNetwork(
            trunk,
            taps,
            build_branch_type("sepconv", groups=groups),
            fusion,
            num_classes=num_classes,
            groups=groups,
            features=beta > 0,
        )
        initialise_weights(*(child for child in self.network.children() if child is not trunk))
        self.head_names = self.network.head_names
        self._loss = SelfDistillLoss(alpha=alpha, beta=beta, temperature=temperature)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the logits (B, K) of every head, the deepest last, for images (B, 3, size, size)."""
        return self._outputs(images).logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss for labels (B,) of any integer type, or probabilities (B, K).

        In eval mode the loss has no feature term.
        With a process group, the feature term is the norm over all workers' batches, so in training every worker must
        call this method; DistributedDataParallel's mean of the gradients is the gradient of the global batch.
        """
        terms = self._loss.terms(self._outputs(images), labels if labels.is_floating_point() else labels.long())
        squares_F, world_size = terms.squares_F.detach(), 1
        if len(squares_F):
            squares_F, world_size = all_reduce_over_default_group(squares_F)
        return self._loss.total(terms, squares_F, world_size=world_size)

    def _outputs(self, images: Tensor) -> Outputs:
        """Run the network. Raises ValueError if a batch norm has only one value per channel."""
        try:
            outputs: Outputs = self.network(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"batch norm can't train on one value per channel: batch size {len(images)}, feature maps of 1x1 "
                f"pixels ({error}); use two or more images, larger images, or eval()"
            ) from error
        return outputs


def _check_branches(branches: Sequence[str], deepest: str) -> Iterator[Problem]:
    if not branches:
        yield Problem("branches", "empty: name one or more submodules before the deepest")
    for name in sorted({name for name in branches if list(branches).count(name) > 1}):
        yield Problem("branches", f"{name} is named {list(branches).count(name)} times: name each submodule once")
    if deepest in branches:
        yield Problem("branches", f"{deepest} is also the deepest submodule: choose a submodule before it")


_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "num_classes": (lambda value: value >= 1, "1 or more"),
    "size": (lambda value: value >= 1, "1 or more"),
    "alpha": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "beta": (lambda value: 0 <= value < math.inf, "0 or more, and finite"),
    "temperature": (lambda value: 0 < value < math.inf, "above 0, and finite"),
}


def _check_ranges(**values: float) -> Iterator[Problem]:
    for name, value in values.items():
        is_in_range, expected = _RANGES[name]
        if not is_in_range(value):
            yield Problem(name, f"{value} is out of range: expected {expected}")
