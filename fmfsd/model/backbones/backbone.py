"""Base classes of backbones: tap points, their shapes, and the forward pass that visits them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from fmfsd.model.activation_checkpointing import checkpoint_activations
from fmfsd.tap_names import name_taps

Visit = Callable[[str, Tensor], Tensor]
"""Called with a tap point's name and map; returns the map from which the trunk continues."""


@dataclass(frozen=True)
class TapPoint:
    """A tap point, the end of a block: its stage, from 0, and the channels of its map."""

    name: str
    stage: int
    channels: int


@dataclass(frozen=True)
class Step:
    """A change of a map's shape: from `channels_in` to `channels_out` channels, its side divided by `stride`."""

    channels_in: int
    channels_out: int
    stride: int


class Trunk(nn.Module):
    """A network whose forward pass calls `visit` with the map of each tap point.

    `passes_maps_only`: the trunk continues from nothing but the map that `visit` returns, which may have fewer images.

    `channels` has the channels at each tap point, stage by stage. All maps of a stage have the same size: that of the
    previous stage divided by the stage's stride.
    """

    passes_maps_only = False

    def __init__(self, channels: Sequence[Sequence[int]], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        names = iter(name_taps([len(counts) for counts in channels]))
        self.tap_points = tuple(
            TapPoint(next(names), stage, count) for stage, counts in enumerate(channels) for count in counts
        )

    def forward(self, images: Tensor, visit: Visit) -> Tensor:
        """(B, 3, H, W) -> the last map. Calls `visit` with the map of every tap point."""
        raise NotImplementedError

    @property
    def deepest(self) -> TapPoint:
        return self.tap_points[-1]

    def steps_between(self, start: TapPoint, end: TapPoint) -> tuple[Step, ...]:
        """Return the steps from the shape at `start` to the shape at `end`, one for each stage that is entered.

        Within a stage there is no step, unless the channels differ.
        """
        ends = {point.stage: point for point in self.tap_points}
        targets = [*(ends[stage] for stage in range(start.stage + 1, end.stage)), end]
        if start.stage == end.stage and start.channels == end.channels:
            return ()
        strides = [self.strides[target.stage] if target.stage > start.stage else 1 for target in targets]
        return tuple(
            Step(before.channels, after.channels, stride)
            for (before, after), stride in zip(pairwise([start, *targets]), strides, strict=True)
        )


class ExternalLayers(nn.Sequential):
    """Layers of another package. They are not traced: their code may depend on the shape or values of their input."""


class Backbone(Trunk):
    """A stem and stages of blocks in sequence; the tap points are the ends of the blocks.

    `recomputes`: use activation checkpointing for each block during training.
    """

    recomputes = False
    passes_maps_only = True

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        channels: Sequence[Sequence[int]],
        strides: Sequence[int],
    ) -> None:
        super().__init__(channels, strides)
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)

    def forward(self, images: Tensor, visit: Visit = lambda _name, x: x) -> Tensor:
        """(B, 3, H, W) -> the last map. The map that `visit` returns feeds the next block."""
        x = self.stem(images)
        for point, block in zip(self.tap_points, self.blocks(), strict=True):
            x = visit(point.name, self.run_block(block, x))
        return x

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint_activations(block, x) if self.recomputes and self.training else block(x)

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the blocks, one per tap point."""
        for stage in self.stages:
            yield from stage.children()
