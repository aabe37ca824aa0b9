"""What the rest of the model needs to know of a backbone: its places, and what lies between them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from fmfsd.model.activation_checkpointing import recomputed
from fmfsd.tap_names import place_names

Visit = Callable[[str, Tensor], Tensor]
"""Is shown the map at a place, and says what goes on from there."""


@dataclass(frozen=True)
class Place:
    """The end of a block: its stage, from 0, and the channels of the map there."""

    name: str
    stage: int
    channels: int


@dataclass(frozen=True)
class Step:
    """From a map's channels to others, at 1 / `stride` of its side."""

    channels_in: int
    channels_out: int
    stride: int


class Trunk(nn.Module):
    """A network whose maps can be looked at while it runs, and what lies between their shapes.

    `passes_maps_only`: what `visit` returns is all that feeds what follows, so it may be the map of fewer images.

    `channels` has those of the map at each place, stage by stage. All maps of a stage have one size, 1 / its stride of
    the one before it.
    """

    passes_maps_only = False

    def __init__(self, channels: Sequence[Sequence[int]], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        names = iter(place_names([len(counts) for counts in channels]))
        self.places = tuple(
            Place(next(names), stage, count) for stage, counts in enumerate(channels) for count in counts
        )

    def forward(self, images: Tensor, visit: Visit) -> Tensor:
        """(B, 3, H, W) -> the last map. Every place's is shown to `visit`."""
        raise NotImplementedError

    @property
    def deepest(self) -> Place:
        return self.places[-1]

    def way(self, start: Place, end: Place) -> tuple[Step, ...]:
        """From the map at `start` to the shape of the one at `end`: a step for each stage that is entered in between.

        Inside a stage there is none, unless the channels differ.
        """
        ends = {place.stage: place for place in self.places}
        targets = [*(ends[stage] for stage in range(start.stage + 1, end.stage)), end]
        if start.stage == end.stage and start.channels == end.channels:
            return ()
        strides = [self.strides[target.stage] if target.stage > start.stage else 1 for target in targets]
        return tuple(
            Step(before.channels, after.channels, stride)
            for (before, after), stride in zip(pairwise([start, *targets]), strides, strict=True)
        )


class Foreign(nn.Sequential):
    """Layers of another package, which may look at their input in ways that no trace of them would show."""


class Backbone(Trunk):
    """A stem and stages of blocks, one after another; a place is the end of a block.

    `recomputes`: in training a block's inner maps are computed again for the backward pass.
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

    def forward(self, images: Tensor, visit: Visit = lambda _place, x: x) -> Tensor:
        """(B, 3, H, W) -> the last map. What `visit` says of a place's map feeds the next block."""
        x = self.stem(images)
        for place, block in zip(self.places, self.blocks(), strict=True):
            x = visit(place.name, self.run_block(block, x))
        return x

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        return recomputed(block, x) if self.recomputes and self.training else block(x)

    def blocks(self) -> Iterator[nn.Module]:
        """One a place."""
        for stage in self.stages:
            yield from stage.children()
