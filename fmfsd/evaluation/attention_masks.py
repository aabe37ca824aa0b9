"""Attention masks of a network's fusion: the mask of each feature map, their average, and the fused map."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AVERAGED, FUSED = "averaged", "fused"


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps of B images, one grid (B, H, W) per name.

    Names: one per tap, the mask of its feature map, a mean over groups; `averaged`, the mean mask, for a fusion that
    averages masks; `fused`, the mean absolute value of the fused map over its channels.
    """

    names: tuple[str, ...]
    grids: Tensor
    """(B, M, H, W); M is the number of names."""


class AttentionRecorder:
    """Records the attention maps of a network's last forward pass in `last`; None for a network without fusion."""

    def __init__(self) -> None:
        self.last: AttentionMaps | None = None

    @contextmanager
    def recording(self, network: nn.Module) -> Iterator[None]:
        fusion, taps = getattr(network, "fusion", None), getattr(network, "taps", ())
        if not isinstance(fusion, nn.Module):
            yield
            return

        def record(module: Any, inputs: tuple[Sequence[Tensor]], fused: Tensor) -> None:
            self.last = _attention(taps, module.masks(*inputs), fused, averaged=module.averages_masks)

        handle = fusion.register_forward_hook(record)
        try:
            yield
        finally:
            handle.remove()


def _attention(taps: Sequence[str], masks: Sequence[Tensor], fused: Tensor, *, averaged: bool) -> AttentionMaps:
    means = [mask.float().mean(dim=1) for mask in masks]
    average = {AVERAGED: torch.stack(means).mean(dim=0)} if averaged else {}
    grids = {**dict(zip(taps, means, strict=False)), **average, FUSED: fused.float().abs().mean(dim=1)}
    return AttentionMaps(tuple(grids), torch.stack(tuple(grids.values()), dim=1))
