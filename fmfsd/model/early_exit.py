"""Early exits: inference on an image stops at the first head that is confident.

BranchyNet, Teerapittayanon et al. 2016 (arXiv:1709.01686).
"""

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmfsd.model.network import Network


class EarlyExitOutputs(NamedTuple):
    """For each image, in the order of the batch: logits (B, K), and the index (B,) of the head that they come from.

    Heads are counted from 0, shallow to deep.
    """

    logits: Tensor
    heads: Tensor


def early_head_names(network: Network) -> tuple[str, ...]:
    """Return the heads that read the map of one tap, shallow to deep; not the fused head, which reads the deepest map.

    There are none if the backbone returns all maps at its end, since no computation would be saved, or if its parts
    exchange more than maps (class tokens).
    """
    return network.head_names[: len(network.heads)] if network.backbone.passes_maps_only else ()


class EarlyExit(nn.Module):
    """A copy of `network` in which each image exits at the first head that is confident, or at the deepest.

    A head is confident if its largest class probability (softmax of its logits) is at least its threshold: with a
    threshold of 0 all images exit, with one above 1 none. Images that have exited are not computed further; if none
    remain, the rest of the network does not run. The logits equal those of `network` in evaluation mode: bit for bit if
    all images of a batch exit at the same head, otherwise up to rounding, since sums depend on the batch size.
    """

    def __init__(self, network: Network, thresholds: Sequence[float]) -> None:
        """`thresholds`: one per early head. Raises ValueError for another number."""
        super().__init__()
        early = early_head_names(network)
        self.network = copy.deepcopy(network).eval()
        self.head_names, self.thresholds = (*early, "deepest"), _require_one_per_head(thresholds, early)

    def forward(self, images: Tensor) -> EarlyExitOutputs:
        """(B, 3, H, W) -> Exits."""
        batch = _Batch(self.network, self.thresholds, torch.arange(len(images), device=images.device))
        with suppress(_AllExited):
            _, logits = self.network.deepest_head(self.network.backbone(images, batch.visit))
            batch.exit_images(logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device))
        return batch.exits()


class StaticEarlyExit(nn.Module):
    """The results of `EarlyExit`, up to rounding, without data-dependent control flow.

    For export formats that can't branch on data. It computes all heads for all images, so it saves no computation. It
    returns a plain tuple, so that loading its graph needs no package.
    """

    def __init__(self, network: Network, thresholds: Sequence[float]) -> None:
        """`thresholds`: one per early head. Raises ValueError for another number."""
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        self.thresholds = _require_one_per_head(thresholds, early_head_names(network))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> logits (B, K) and head indices (B,), as in `EarlyExit`."""
        logits = self.network(images).logits
        shallow, selected = logits[: len(self.thresholds)], logits[-1]
        heads = torch.zeros_like(selected[:, 0], dtype=torch.int64) + len(shallow)
        for number in reversed(range(len(shallow))):
            confident = _is_confident(shallow[number], self.thresholds[number])
            selected = torch.where(confident.unsqueeze(1), shallow[number], selected)
            heads = torch.where(confident, number, heads)
        return selected, heads


def _require_one_per_head(thresholds: Sequence[float], early: Sequence[str]) -> tuple[float, ...]:
    if len(thresholds) != len(early):
        raise ValueError(f"{len(thresholds)} thresholds for {len(early)} early heads ({', '.join(early)})")
    return tuple(thresholds)


def _is_confident(logits: Tensor, threshold: float) -> Tensor:
    return logits.double().softmax(dim=1).amax(dim=1) >= threshold


class _AllExited(Exception):
    """Ends a forward pass when all images have exited; not an error."""


class _Batch:
    """The state of a batch: the indices of the images that remain, and the logits of those that have exited."""

    def __init__(self, network: Network, thresholds: Sequence[float], remaining: Tensor) -> None:
        self._network, self._thresholds, self._remaining = network, thresholds, remaining
        self._taps = network.taps if network.feeds_trunk else network.taps[: len(thresholds)]
        self._maps: list[Tensor] = []
        self._exited: list[tuple[Tensor, Tensor]] = []

    def visit(self, name: str, x: Tensor) -> Tensor:
        """Return the map from which the trunk continues after a tap, for the images that remain."""
        if name not in self._taps:
            return x
        number = len(self._maps)
        trunk_map = self._network.tap(x, self._maps)
        if number >= len(self._thresholds):  # no early head at this tap
            return trunk_map
        _, logits = self._network.heads[number](self._network.branches[number](self._maps[number]))
        confident = _is_confident(logits, self._thresholds[number])
        return self._drop(trunk_map, confident) if self.exit_images(logits, confident) else trunk_map

    def exit_images(self, logits: Tensor, confident: Tensor) -> int:
        """Let the confident images exit and return their number; raise _AllExited if none remain."""
        self._exited.append((self._remaining[confident], logits[confident]))
        self._remaining = self._remaining[~confident]
        if not len(self._remaining):
            raise _AllExited
        return len(self._exited[-1][0])

    def _drop(self, trunk_map: Tensor, confident: Tensor) -> Tensor:
        self._maps = [each[~confident] for each in self._maps]
        return trunk_map[~confident]

    def exits(self) -> EarlyExitOutputs:
        indices, logits = (torch.cat(parts) for parts in zip(*self._exited, strict=True))
        heads = torch.cat([torch.full_like(exited, number) for number, (exited, _) in enumerate(self._exited)])
        order = indices.argsort()
        return EarlyExitOutputs(logits[order], heads[order])
