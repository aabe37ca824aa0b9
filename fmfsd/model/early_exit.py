"""Early exits (BranchyNet, Teerapittayanon et al. 2016, arXiv:1709.01686): images that a shallow head is sure of go no
deeper."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmfsd.model.network import Network


class Exits(NamedTuple):
    """What became of each image, in the order of the images: logits (B, K), and the number (B,) of the head that they
    are from, from 0, shallow to deep."""

    logits: Tensor
    heads: Tensor


def early_heads(network: Network) -> tuple[str, ...]:
    """Those that read one tap's map, shallow to deep; the fused head is none, since it reads the deepest map too.

    None at all where the backbone gives all its maps at its end, since nothing would be saved, and where its parts
    exchange more than maps (class tokens).
    """
    return network.head_names[: len(network.heads)] if network.backbone.passes_maps_only else ()


class EarlyExit(nn.Module):
    """A copy of `network` whose images leave at the first head that is sure of them, all others at the deepest.

    A head is sure if its largest class probability (softmax of its logits) is its threshold or more: a threshold of 0
    lets all go, one above 1 none. What has left is computed no further, and where nothing remains the rest of the
    network does not run. The logits are those of `network` in evaluation, bit for bit where all images of a batch leave
    together; else to rounding, since sums depend on the size of a batch.
    """

    def __init__(self, network: Network, thresholds: Sequence[float]) -> None:
        """`thresholds`: one an early head. ValueError if there are fewer or more."""
        super().__init__()
        early = early_heads(network)
        self.network = copy.deepcopy(network).eval()
        self.head_names, self.thresholds = (*early, "deepest"), _one_each(thresholds, early)

    def forward(self, images: Tensor) -> Exits:
        """(B, 3, H, W) -> Exits."""
        batch = _Batch(self.network, self.thresholds, torch.arange(len(images), device=images.device))
        with suppress(_NothingRemains):
            _, logits = self.network.deepest_head(self.network.backbone(images, batch.visit))
            batch.let_go(logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device))
        return batch.exits()


class FirstSure(nn.Module):
    """What `EarlyExit` says, to rounding, without branching on data: every head of every image is computed.

    For forms that can't let images leave; nothing is saved. A plain pair, so that a graph of it needs no package.
    """

    def __init__(self, network: Network, thresholds: Sequence[float]) -> None:
        """`thresholds`: one an early head. ValueError if there are fewer or more."""
        super().__init__()
        self.network, self.thresholds = copy.deepcopy(network).eval(), _one_each(thresholds, early_heads(network))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> logits and heads, as in Exits."""
        logits = self.network(images).logits
        shallow, chosen = logits[: len(self.thresholds)], logits[-1]
        heads = torch.zeros_like(chosen[:, 0], dtype=torch.int64) + len(shallow)
        for number in reversed(range(len(shallow))):
            sure = _is_sure(shallow[number], self.thresholds[number])
            chosen = torch.where(sure.unsqueeze(1), shallow[number], chosen)
            heads = torch.where(sure, number, heads)
        return chosen, heads


def _one_each(thresholds: Sequence[float], early: Sequence[str]) -> tuple[float, ...]:
    if len(thresholds) != len(early):
        raise ValueError(f"{len(thresholds)} thresholds for {len(early)} early heads ({', '.join(early)})")
    return tuple(thresholds)


def _is_sure(logits: Tensor, threshold: float) -> Tensor:
    return logits.double().softmax(dim=1).amax(dim=1) >= threshold


class _NothingRemains(Exception):
    """Ends a forward pass; no error."""


class _Batch:
    """The images that are still inside, by their places in the batch that came in, and what became of the others."""

    def __init__(self, network: Network, thresholds: Sequence[float], remaining: Tensor) -> None:
        self._network, self._thresholds, self._remaining = network, thresholds, remaining
        self._taps = network.taps if network.feeds_trunk else network.taps[: len(thresholds)]
        self._maps: list[Tensor] = []
        self._gone: list[tuple[Tensor, Tensor]] = []

    def visit(self, place: str, x: Tensor) -> Tensor:
        """What goes on behind a tap, of the images that do."""
        if place not in self._taps:
            return x
        number = len(self._maps)
        onward = self._network.tap(x, self._maps)
        if number >= len(self._thresholds):  # where maps are fused, or no head is early, nobody leaves
            return onward
        _, logits = self._network.heads[number](self._network.branches[number](self._maps[number]))
        sure = _is_sure(logits, self._thresholds[number])
        return self._without(onward, sure) if self.let_go(logits, sure) else onward

    def let_go(self, logits: Tensor, sure: Tensor) -> int:
        """How many leave; raises _NothingRemains behind the last."""
        self._gone.append((self._remaining[sure], logits[sure]))
        self._remaining = self._remaining[~sure]
        if not len(self._remaining):
            raise _NothingRemains
        return len(self._gone[-1][0])

    def _without(self, onward: Tensor, sure: Tensor) -> Tensor:
        self._maps = [each[~sure] for each in self._maps]
        return onward[~sure]

    def exits(self) -> Exits:
        places, logits = (torch.cat(parts) for parts in zip(*self._gone, strict=True))
        heads = torch.cat([torch.full_like(gone, number) for number, (gone, _) in enumerate(self._gone)])
        order = places.argsort()
        return Exits(logits[order], heads[order])
