"""Any module as a trunk: forward hooks on submodules capture its feature maps."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fmfsd.errors import ConfigError, Problem
from fmfsd.model.backbones.backbone import Trunk, Visit


class HookedTrunk(Trunk):
    """`model` as a trunk whose stages end at the outputs of its submodules `names`, shallow to deep.

    The return value of `visit` is not fed back: the model runs unchanged, including the layers behind the last map.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__([[count] for count in channels], strides)
        self.model, self._names = model, tuple(names)

    def forward(self, images: Tensor, visit: Visit = lambda _name, x: x) -> Tensor:
        """(B, 3, H, W) -> the last map."""
        maps = capture_outputs(self.model, self._names, images)
        for point, name in zip(self.tap_points, self._names, strict=True):
            x = visit(point.name, maps[name])
        return x


def capture_outputs(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Any]:
    """Run the model once and return the outputs of the submodules; if one runs several times, its last output."""
    outputs: dict[str, Any] = {}

    def store(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[name] = output

    hooks = [model.get_submodule(name).register_forward_hook(partial(store, name)) for name in names]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def build_hooked_trunk(model: nn.Module, names: Sequence[str], size: int) -> HookedTrunk:
    """Return the trunk; map shapes are found by running an image of `size` x `size` pixels.

    Raises ConfigError with every name that can't be tapped, or if a map's side is not a whole multiple of the next.
    """
    modules = dict(model.named_modules())
    if problems := [Problem(name, _describe_unknown(modules)) for name in names if name not in modules or not name]:
        raise ConfigError(problems)
    training = model.training
    with torch.no_grad():
        maps = capture_outputs(
            model.eval(), names, torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
        )
    model.train(training)
    if unusable := [name for name in names if not _is_square_map(maps.get(name))]:
        text = "its output is not a square map (B, C, H, W): name a submodule whose output is"
        raise ConfigError([Problem(name, text) for name in unusable])
    sides = [size, *(maps[name].shape[-1] for name in names)]
    if any(before % after for before, after in pairwise(sides)):
        text = (
            f"maps have sides of {sides[1:]} pixels for images of {size}, but each must be a whole multiple of the next"
        )
        raise ConfigError(f"{', '.join(names)}: {text}; name them shallow to deep, or set another size")
    strides = [before // after for before, after in pairwise(sides)]
    return HookedTrunk(model, names, [maps[name].shape[1] for name in names], strides)


def _describe_unknown(modules: dict[str, nn.Module]) -> str:
    top = ", ".join(name for name in modules if name and "." not in name)
    return f"is no submodule of the backbone; it has {top}, and their submodules"


def _is_square_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3]
