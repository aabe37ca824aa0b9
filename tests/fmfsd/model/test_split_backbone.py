"""A model is cut at its maps wherever one value is all that goes on, and nowhere else."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fmfsd.model.backbones.split import ChannelsLast, Tokens, View, find_cuts, parts_between


def conv(channels_in: int, channels: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, 2, padding=1)


class Stages(nn.Module):
    """Three convolutions; maps are what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3), conv(4), conv(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x)
        second = self.two(first)
        return [first, second, self.three(second)]


class WithOperationsBetween(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x * 2) + 1
        second = (self.two(first) + first[:, :, ::2, ::2]).relu()
        return [first, second, self.three(second)]


class LastChannels(Stages):
    """Of as many channels as the first map has rows, so that its shape does not tell where they are."""

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x).permute(0, 2, 3, 1)
        second = self.two(first.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return [first, second, self.three(second.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + 0]


class WithTokens(nn.Module):
    """A transformer without attention: patches, a class token and a position embedding, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, 4)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.class_token, self.positions = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 5, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        batch, _, height, width = x.shape
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(batch, -1, -1), tokens], dim=1) + self.positions
        first = self.one(tokens)
        second = self.two(first) + first[:, :1]
        shape = (batch, height // 4, width // 4, -1)
        return [each[:, 1:].reshape(shape).permute(0, 3, 1, 2).contiguous() for each in (first, second)]


class WithSkip(Stages):
    """The last stage reads the first map too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x)
        second = self.two(first)
        return [first, second, self.three(second + first[:, :, ::2, ::2])]


class WithOneLayerTwice(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x)
        second = self.two(first)
        return [first, second, self.two(second)]


class WithOneTableTwice(Stages):
    """A constant of the model that two stages read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(1))

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x)
        second = self.two(first * self.table)
        return [first, second, self.three(second * self.table)]


class WithChangedMaps(Stages):
    """Maps are rectified, and what goes on is not."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [each.relu() for each in super().forward(x)]


class WithNormalisedMaps(Stages):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.norm(each) for each in super().forward(x)]


class WithAnotherWayInTraining(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x * 2 if self.training else x)


class WithALookAtValues(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x if x.sum() > 0 else -x)


class WithOneMap(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x)[-1]  # type: ignore[return-value]


def read(model: nn.Module, returned: Tensor) -> Tensor:
    return returned.permute(0, 3, 1, 2) if isinstance(model, LastChannels) else returned


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def maps_of_parts(parts: Sequence[nn.Module], views: Sequence[View], value: Tensor) -> list[Tensor]:
    """Each map is taken out of the value and put back."""
    maps = []
    for part, view in zip(parts, views, strict=True):
        value = part(value)
        maps.append(view.map_of(value))
        value = view.with_map(value, maps[-1].clone())
    return maps


@pytest.mark.parametrize(
    ("kind", "view"),
    [(Stages, View), (WithOperationsBetween, View), (LastChannels, ChannelsLast), (WithTokens, Tokens)],
)
@pytest.mark.parametrize("training", [True, False])
def test_parts_one_after_another_are_the_model(kind: type[nn.Module], view: type[View], training: bool) -> None:
    """Bit for bit, for batches of another size too; and they have its parameters, each once."""
    model = kind().train(training)
    cuts = find_cuts(model, images(), 3, lambda returned: read(model, returned))
    assert [type(cut.view) for cut in cuts] == [view] * len(model(images()))
    parts = parts_between(model, cuts)
    expected = [read(model, each) for each in model(images(5))]
    for one, other in zip(maps_of_parts(parts, [cut.view for cut in cuts], images(5)), expected, strict=True):
        assert torch.equal(one, other)
    assert {id(each) for part in parts for each in part.parameters()} == {id(each) for each in model.parameters()}
    assert model.training == training


def test_another_map_takes_the_place_of_the_tokens_and_leaves_the_others() -> None:
    value, view = torch.randn(2, 6, 3), Tokens(num_prefix=2, side=2)
    other = torch.randn(2, 3, 2, 2)
    found = view.with_map(value, other)
    assert torch.equal(found[:, :2], value[:, :2])
    assert torch.equal(view.map_of(found), other)
    assert view.has_more
    assert not Tokens(num_prefix=0, side=2).has_more
    assert torch.equal(found[0, 3], other[0, :, 0, 1]), "row by row"


def test_layers_one_after_another_are_taken_as_they_are() -> None:
    model = Stages()
    cuts = find_cuts(model, images(), 2, lambda returned: returned)
    assert [list(part) for part in parts_between(model, cuts)] == [[model.one, model.two], [model.three]]


@pytest.mark.parametrize(
    "kind",
    [
        WithSkip,
        WithOneLayerTwice,
        WithOneTableTwice,
        WithChangedMaps,
        WithNormalisedMaps,
        WithAnotherWayInTraining,
        WithALookAtValues,
        WithOneMap,
    ],
)
def test_what_is_no_chain_of_maps_is_not_cut(kind: type[nn.Module]) -> None:
    assert find_cuts(kind(), images(), 3, lambda returned: returned) == []
