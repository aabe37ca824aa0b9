"""A model is split at a feature map only if a single value is passed on to the rest of the model."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fmfsd.model.backbones.split import ChannelsLastView, MapView, TokenView, find_cuts, split_at


def conv(channels_in: int, channels: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, 2, padding=1)


class Stages(nn.Module):
    """Three convolutions; the maps are their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3), conv(4), conv(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x)
        second = self.two(first)
        return [first, second, self.three(second)]


class WithOperationsBetweenLayers(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x * 2) + 1
        second = (self.two(first) + first[:, :, ::2, ::2]).relu()
        return [first, second, self.three(second)]


class WithChannelsLast(Stages):
    """The first map has as many channels as rows, so its shape does not show which dimension is the channels."""

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x).permute(0, 2, 3, 1)
        second = self.two(first.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return [first, second, self.three(second.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + 0]


class WithTokens(nn.Module):
    """A transformer without attention: patches, a class token, position embeddings, and two layers."""

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
    """The last stage also uses the first map."""

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x)
        second = self.two(first)
        return [first, second, self.three(second + first[:, :, ::2, ::2])]


class WithSharedLayer(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x)
        second = self.two(first)
        return [first, second, self.two(second)]


class WithSharedConstant(Stages):
    """Two stages use the same constant of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(1))

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.one(x)
        second = self.two(first * self.table)
        return [first, second, self.three(second * self.table)]


class WithChangedMaps(Stages):
    """The returned maps are rectified, the values passed to the next stage are not."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [each.relu() for each in super().forward(x)]


class WithNormalisedMaps(Stages):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.norm(each) for each in super().forward(x)]


class WithAnotherPathInTraining(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x * 2 if self.training else x)


class WithDataDependentBranch(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x if x.sum() > 0 else -x)


class WithOnlyTheLastMap(Stages):
    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x)[-1]  # type: ignore[return-value]


def to_channels_first(model: nn.Module, returned: Tensor) -> Tensor:
    return returned.permute(0, 3, 1, 2) if isinstance(model, WithChannelsLast) else returned


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def maps_of_parts(parts: Sequence[nn.Module], views: Sequence[MapView], value: Tensor) -> list[Tensor]:
    """Run the parts; take each map out of the value and put it back."""
    maps = []
    for part, view in zip(parts, views, strict=True):
        value = part(value)
        maps.append(view.to_map(value))
        value = view.replace_map(value, maps[-1].clone())
    return maps


@pytest.mark.parametrize(
    ("kind", "view"),
    [
        (Stages, MapView),
        (WithOperationsBetweenLayers, MapView),
        (WithChannelsLast, ChannelsLastView),
        (WithTokens, TokenView),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_the_parts_in_sequence_are_the_model(kind: type[nn.Module], view: type[MapView], training: bool) -> None:
    """Bit for bit, also for batches of another size; the parts have all parameters of the model, each once."""
    model = kind().train(training)
    cuts = find_cuts(model, images(), 3, lambda returned: to_channels_first(model, returned))
    assert [type(cut.view) for cut in cuts] == [view] * len(model(images()))
    parts = split_at(model, cuts)
    expected = [to_channels_first(model, each) for each in model(images(5))]
    for one, other in zip(maps_of_parts(parts, [cut.view for cut in cuts], images(5)), expected, strict=True):
        assert torch.equal(one, other)
    assert {id(each) for part in parts for each in part.parameters()} == {id(each) for each in model.parameters()}
    assert model.training == training


def test_a_map_replaces_the_patch_tokens_but_not_the_prefix_tokens() -> None:
    value, view = torch.randn(2, 6, 3), TokenView(num_prefix=2, side=2)
    other = torch.randn(2, 3, 2, 2)
    replaced = view.replace_map(value, other)
    assert torch.equal(replaced[:, :2], value[:, :2])
    assert torch.equal(view.to_map(replaced), other)
    assert view.has_extra_values
    assert not TokenView(num_prefix=0, side=2).has_extra_values
    assert torch.equal(replaced[0, 3], other[0, :, 0, 1]), "row by row"


def test_a_sequence_of_layers_is_split_without_tracing() -> None:
    model = Stages()
    cuts = find_cuts(model, images(), 2, lambda returned: returned)
    assert [list(part) for part in split_at(model, cuts)] == [[model.one, model.two], [model.three]]


@pytest.mark.parametrize(
    "kind",
    [
        WithSkip,
        WithSharedLayer,
        WithSharedConstant,
        WithChangedMaps,
        WithNormalisedMaps,
        WithAnotherPathInTraining,
        WithDataDependentBranch,
        WithOnlyTheLastMap,
    ],
)
def test_a_model_that_is_not_a_chain_of_maps_is_not_split(kind: type[nn.Module]) -> None:
    assert find_cuts(kind(), images(), 3, lambda returned: returned) == []
