"""Any module as a trunk: its submodules' outputs are its maps."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fmfsd.errors import ConfigError, Problem
from fmfsd.model.backbones.backbone import Trunk, Visit


class HookedTrunk(Trunk):
    """`model`, and as stages the outputs of its submodules `names`, shallow to deep, seen by forward hooks.

    What `visit` says feeds nothing: the model runs as it stands, with what is behind the last map.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__([[count] for count in channels], strides)
        self.model, self._names = model, tuple(names)

    def forward(self, images: Tensor, visit: Visit = lambda _place, x: x) -> Tensor:
        """(B, 3, H, W) -> the last map."""
        maps = maps_of(self.model, self._names, images)
        for place, name in zip(self.places, self._names, strict=True):
            x = visit(place.name, maps[name])
        return x


def maps_of(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Any]:
    """What the submodules gave in one pass; of one that ran more than once the last."""
    found: dict[str, Any] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        found[name] = output

    hooks = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def hooked(model: nn.Module, names: Sequence[str], size: int) -> HookedTrunk:
    """With the shapes of the maps for images of `size` pixels a side, of which one is tried. ConfigError with every
    name that can't be tapped, or if the maps are not in order, each side a whole multiple of the next."""
    known = dict(model.named_modules())
    if problems := [Problem(name, _unknown(known)) for name in names if name not in known or not name]:
        raise ConfigError(problems)
    training = model.training
    with torch.no_grad():
        maps = maps_of(model.eval(), names, torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    model.train(training)
    odd = {name: maps.get(name) for name in names if not _is_square_map(maps.get(name))}
    if odd:
        asked = "gives no square map (B, C, H, W): name a submodule that does"
        raise ConfigError([Problem(name, asked) for name in odd])
    sides = [size, *(maps[name].shape[-1] for name in names)]
    if any(before % after for before, after in pairwise(sides)):
        text = f"maps of {sides[1:]} pixels a side for images of {size}: each must be a whole multiple of the next"
        raise ConfigError(f"{', '.join(names)}: {text}; name them shallow to deep, or set another size")
    strides = [before // after for before, after in pairwise(sides)]
    return HookedTrunk(model, names, [maps[name].shape[1] for name in names], strides)


def _unknown(known: dict[str, nn.Module]) -> str:
    top = ", ".join(name for name in known if name and "." not in name)
    return f"is no submodule of the backbone; it has {top}, and what is in them"


def _is_square_map(found: Any) -> bool:
    return isinstance(found, Tensor) and found.dim() == 4 and found.shape[2] == found.shape[3]
