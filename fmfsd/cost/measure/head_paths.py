"""The way to each head of a network, in the words that people have for it."""

from collections.abc import Iterator
from dataclasses import dataclass

from fmfsd.model.branch import named_layers
from fmfsd.model.network import DoubleFusionNetwork, FusionNetwork, Network, SideFusionNetwork

Layers = tuple[tuple[str, str], ...]
"""What each is called, and where it is: a place of the backbone or the name of a module."""


@dataclass(frozen=True)
class HeadPath:
    """To one head: first up to where its map is fused, if it is one of those that are, then from there."""

    before: Layers
    after: Layers = ()
    is_fused: bool = False


def paths(network: Network) -> list[HeadPath]:
    """One a head, in the order of `network.head_names`."""
    if isinstance(network, SideFusionNetwork):
        return [*_own_branches(network), *_behind_the_fused_map(network)]
    branches = zip(network.taps, network.branches, strict=True)
    own = [HeadPath(((tap, tap), *_of(f"branches.{number}", network))) for number, (tap, _) in enumerate(branches)]
    return [*own, HeadPath(_of_the_deepest(network))]


def _own_branches(network: SideFusionNetwork) -> Iterator[HeadPath]:
    for number in range(len(network.branches)):
        tap = network.taps[number]
        before = ((tap, tap), *_of(f"alignments.{number}", network))
        yield HeadPath(before, _of(f"branches.{number}", network), is_fused=True)


def _behind_the_fused_map(network: SideFusionNetwork) -> Iterator[HeadPath]:
    fused = (("fused map", "fusion"),)
    beside, deepest = (*fused, *_of("fused_branch", network)), _of_the_deepest(network)
    if isinstance(network, DoubleFusionNetwork):
        yield HeadPath(beside)
    yield HeadPath((*beside, (f"fused with {network.backbone.deepest.name}", "deep_fusion")))
    yield HeadPath((*fused, *deepest) if isinstance(network, FusionNetwork) else deepest)


def _of(name: str, network: Network) -> Layers:
    return tuple(named_layers(network.get_submodule(name), name))


def _of_the_deepest(network: Network) -> Layers:
    place = network.backbone.deepest.name
    return ((place, place),)
