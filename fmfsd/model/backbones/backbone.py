"""What the rest of the model needs to know of a backbone."""

from collections.abc import Sequence

from torch import nn


class Backbone(nn.Module):
    """A stem and stages; stage k's output has `channels[k]` channels and 1 / `strides[k]` of its input's side."""

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Module], channels: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(channels)
        self.strides = tuple(strides)
