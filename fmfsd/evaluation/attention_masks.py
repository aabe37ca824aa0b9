"""What a network's fusion attends to: the mask of each map, their average, and the fused map."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AVERAGED, FUSED = "averaged", "fused"


@dataclass(frozen=True)
class Attention:
    """Of B images, one grid (B, H, W) a name: the mask of each tap's map and, where masks are averaged, `averaged`,
    both means over their groups; then `fused`, the mean of the fused map's absolute values over its channels."""

    names: tuple[str, ...]
    grids: Tensor
    """(B, M, H, W), M as many as there are names."""


class Watcher:
    """Keeps what the fusion of a network attends to in each of its passes; of a network without fusion, nothing."""

    def __init__(self) -> None:
        self.last: Attention | None = None

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        fusion, taps = getattr(network, "fusion", None), getattr(network, "taps", ())
        if not isinstance(fusion, nn.Module):
            yield
            return

        def keep(module: Any, given: tuple[Sequence[Tensor]], fused: Tensor) -> None:
            self.last = _attention(taps, module.masks(*given), fused, averaged=module.averages_masks)

        handle = fusion.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()


def _attention(taps: Sequence[str], masks: Sequence[Tensor], fused: Tensor, *, averaged: bool) -> Attention:
    each = [mask.float().mean(dim=1) for mask in masks]
    average = {AVERAGED: torch.stack(each).mean(dim=0)} if averaged else {}
    named = {**dict(zip(taps, each, strict=False)), **average, FUSED: fused.float().abs().mean(dim=1)}
    return Attention(tuple(named), torch.stack(tuple(named.values()), dim=1))
