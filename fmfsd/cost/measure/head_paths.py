"""Paths through a network to each of its heads, as display names of layers."""

from collections.abc import Iterator
from dataclasses import dataclass

from fmfsd.model.branch import iterate_labelled_layers
from fmfsd.model.network import DoubleFusionNetwork, FusionNetwork, Network, SideFusionNetwork

Layers = tuple[tuple[str, str], ...]
"""Display name and location of each layer: a place in the backbone or the name of a module."""


@dataclass(frozen=True)
class HeadPath:
    """Layers on the way to one head, before and after its map is fused; without fusion all are in the first field."""

    layers_before_fusion: Layers
    layers_after_fusion: Layers = ()
    is_fused: bool = False


def find_head_paths(network: Network) -> list[HeadPath]:
    """Return one path per head, in the order of `network.head_names`."""
    if isinstance(network, SideFusionNetwork):
        return [*_fused_branch_paths(network), *_paths_from_fused_map(network)]
    branches = zip(network.taps, network.branches, strict=True)
    side = [HeadPath(((tap, tap), *_layers(f"branches.{number}", network))) for number, (tap, _) in enumerate(branches)]
    return [*side, HeadPath(_deepest(network))]


def _fused_branch_paths(network: SideFusionNetwork) -> Iterator[HeadPath]:
    for number in range(len(network.branches)):
        tap = network.taps[number]
        before = ((tap, tap), *_layers(f"alignments.{number}", network))
        yield HeadPath(before, _layers(f"branches.{number}", network), is_fused=True)


def _paths_from_fused_map(network: SideFusionNetwork) -> Iterator[HeadPath]:
    fused = (("fused map", "fusion"),)
    fused_branch, deepest = (*fused, *_layers("fused_branch", network)), _deepest(network)
    if isinstance(network, DoubleFusionNetwork):
        yield HeadPath(fused_branch)
    yield HeadPath((*fused_branch, (f"fused with {network.backbone.deepest.name}", "deep_fusion")))
    yield HeadPath((*fused, *deepest) if isinstance(network, FusionNetwork) else deepest)


def _layers(name: str, network: Network) -> Layers:
    return tuple(iterate_labelled_layers(network.get_submodule(name), name))


def _deepest(network: Network) -> Layers:
    name = network.backbone.deepest.name
    return ((name, name),)
