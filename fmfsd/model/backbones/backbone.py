"""What the rest of the model needs to know of a backbone: blocks one after another, and the places between them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from fmfsd.places import place_names

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


class Backbone(nn.Module):
    """A stem and stages of blocks.

    `channels` has those of each block's output, stage by stage. All maps of a stage have one size, 1 / its stride of
    the one before it.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        channels: Sequence[Sequence[int]],
        strides: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.strides = tuple(strides)
        names = iter(place_names([len(blocks) for blocks in stages]))
        self.places = tuple(
            Place(next(names), stage, count) for stage, counts in enumerate(channels) for count in counts
        )

    def forward(self, images: Tensor, visit: Visit = lambda _place, x: x) -> Tensor:
        """(B, 3, H, W) -> the last map. Every block's output is shown to `visit`, which may replace it."""
        x = self.stem(images)
        for place, block in zip(self.places, self.blocks(), strict=True):
            x = visit(place.name, block(x))
        return x

    def blocks(self) -> Iterator[nn.Module]:
        """One a place."""
        for stage in self.stages:
            yield from stage.children()

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
