"""The probe's report of each head: its path, its share of training, and its cost after pruning."""

import io
import os
import re
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.config import RunConfig, load_config
from fmfsd.cost.cost_report import CostEstimate, HeadCost
from fmfsd.cost.measure.estimate import estimate_cost
from fmfsd.evaluation.exit_thresholds import NEVER
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import EarlyExit, early_head_names
from fmfsd.model.network import Network
from fmfsd.model.prune import prune
from tests.helpers.networks import count_macs

SMALL = ("model.backbone=resnet8", "train.batch=64")
TAPS = "model.branches=[stage3, stage2.block1, stage1]"
"""One tap is inside a stage; the taps are not in order."""


def config(*changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", changes)


@cache
def cached_probe(*changes: str) -> CostEstimate:
    return estimate_cost(config(*changes), workers=1)


def heads_by_name(probe: CostEstimate) -> dict[str, HeadCost]:
    return {head.name: head for head in probe.heads}


def test_early_exits_cost_the_published_share_of_the_plain_network() -> None:
    """Section 6 of the method: 0.293 and 0.546 for heads 1 and 2, 1.030 for the deepest; the fused head is no exit."""
    result = cached_probe("distill.beta=0")
    exits = {head.name: head.exits_of_plain for head in result.heads}
    assert exits == {
        "branch1": pytest.approx(0.293, abs=5e-4),
        "branch2": pytest.approx(0.546, abs=5e-4),
        "fused": None,
        "deepest": pytest.approx(1.0298, abs=5e-5),
    }
    assert result.plain.macs / 1e6 == pytest.approx(555.5, abs=0.06)
    assert round(result.macs / result.plain.macs, 3) == 1.036


NETWORK_KINDS = ("model.fusion=trunk", "model.fusion=side", "model.fusion=both", "method=byot", "method=byot_attention")
INSIDE_STAGES = "model.branches=[stage1.block2, stage2, stage3.block1]"
WITH_EXITS = [
    *((form, "model.backbone=resnet8") for form in NETWORK_KINDS),
    *((form, "model.backbone=resnet20", INSIDE_STAGES) for form in NETWORK_KINDS),
    *((f"model.backbone={backbone}",) for backbone in ("resnet18", "wrn16_8", "vgg11", "mobilenetv2", "squeezenet")),
    ("method=plain", "model.backbone=resnet8"),
    ("model.backbone=resnet18", "model.branches=[stage3]"),
    ("model.backbone=resnet18", "model.branch=bottleneck", "model.fusion=both"),
    *((f"model.backbone=timm/{name}",) for name in ("test_resnet", "test_efficientnet", "vit_tiny_patch16_224")),
    ("model.backbone=timm/test_vit", "model.fusion=side"),
]


def measure_exits(network: Network) -> dict[str, float]:
    """Return the measured multiply-adds of an image that leaves at each exit."""
    early = early_head_names(network)
    threshold_lists = [[NEVER] * number + [0.0] * (len(early) - number) for number in range(len(early) + 1)]
    models = [EarlyExit(network, thresholds) for thresholds in threshold_lists]
    return {name: count_macs(model) for name, model in zip((*early, "deepest"), models, strict=True)}


@pytest.mark.parametrize("changes", WITH_EXITS, ids="-".join)
def test_the_cost_of_each_exit_is_the_measured_one(changes: tuple[str, ...]) -> None:
    result = cached_probe(*changes)
    exits = {head.name: head.exits_of_plain for head in result.heads if head.exits_of_plain is not None}
    measured = measure_exits(build_network(config(*changes)))
    assert exits == {name: count / result.plain.macs for name, count in measured.items()}


@pytest.mark.parametrize(
    ("backbone", "fusion", "parameters", "macs"),
    [
        ("resnet18", "trunk", 1.011, 1.018),
        ("resnet34", "trunk", 1.006, 1.009),
        ("resnet50", "trunk", 1.076, 1.118),
        ("resnet18", "side", 1.000, 1.000),
    ],
)
def test_the_cost_of_the_deepest_head_alone_is_the_published_one(
    backbone: str, fusion: str, parameters: float, macs: float
) -> None:
    result = cached_probe(f"model.backbone={backbone}", f"model.fusion={fusion}", "distill.beta=0")
    deepest = heads_by_name(result)["deepest"]
    assert round(deepest.alone.parameters / result.plain.parameters, 3) == parameters
    assert round(deepest.of_plain, 3) == macs
    assert ("can't be dropped at no cost" in result.advice()) == (fusion == "trunk")


NETWORKS = {
    "trunk": (TAPS, "data.name=cifar10"),
    "side": ("model.fusion=side", *SMALL),
    "both": ("model.fusion=both", *SMALL),
    "byot": ("method=byot", *SMALL),
    "attention": ("method=byot_attention", *SMALL),
    "cbam": ("model.sem=cbam", *SMALL),
    "plain": ("method=plain", *SMALL),
    "maps at the end": ("method=byot", "model.backbone=timm/test_vit", "data.name=cifar10"),
    "cut": ("model.backbone=timm/test_efficientnet", "data.name=cifar10"),
    "tokens": ("model.backbone=timm/vit_tiny_patch16_224", "data.name=cifar10"),
}


def size_of(network: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, and the measured multiply-adds of an image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return sum(each.numel() for each in network.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_cost_of_a_head_alone_is_that_of_its_pruned_network(kind: str) -> None:
    network = build_network(config(*NETWORKS[kind]))
    expected = {name: size_of(prune(network, name)) for name in network.head_names}
    result = cached_probe(*NETWORKS[kind]).heads
    assert {head.name: (head.alone.parameters, head.alone.macs) for head in result} == expected


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_costs_of_the_parts_add_up_to_the_training_step(kind: str) -> None:
    result = cached_probe(*NETWORKS[kind])
    parts = (result.trunk, result.shared, *(head.own for head in result.heads))
    assert sum(part.parameters for part in parts) == result.parameters.total
    assert sum(part.macs for part in parts) == result.macs
    assert min(min(part.parameters, part.macs) for part in parts) >= 0
    shares = sum(head.training_share for head in result.heads)
    assert shares == pytest.approx(1 - (result.trunk.macs + result.shared.macs) / result.macs)


def test_layers_that_only_one_head_needs_count_as_its_own() -> None:
    """ResNet-8 with BYOT's attention: a branch from stage 1 has its attention gate, two separable blocks, a classifier,
    and a linear layer for the feature loss, which inference does not need; the last branch has no such layer.
    """

    def separable(channels_in: int, channels_out: int) -> int:
        """Return the parameters of two depthwise 3x3 and two pointwise convolutions and two batch norms."""
        return 18 * channels_in + channels_in**2 + channels_in * channels_out + 2 * (channels_in + channels_out)

    classifier, feature = 64 * 100 + 100, 64 * 64 + 64
    result = heads_by_name(cached_probe(*NETWORKS["attention"]))
    first = separable(16, 16) + separable(16, 32) + separable(32, 64)
    assert result["branch1"].own.parameters == first + classifier + feature
    assert result["branch2"].own.parameters == separable(32, 32) + separable(32, 64) + classifier
    assert heads_by_name(cached_probe(*NETWORKS["plain"]))["deepest"].own.parameters == classifier


def paths_of(*changes: str) -> dict[str, str]:
    return {head.name: head.path for head in cached_probe(*changes).heads}


def test_paths_are_described_by_layers() -> None:
    assert paths_of("distill.beta=0") == {
        "branch1": "stage1 64x32x32 > sepconv 128 /2 > sepconv 256 /2 | sepconv 512 /2 > head",
        "branch2": "stage2 128x16x16 > sepconv 256 /2 | sepconv 512 /2 > head",
        "fused": "fused map 256x8x8 > sepconv 512 /2 > fused with stage4 > head",
        "deepest": "fused map 256x8x8 > stage4 > head",
    }
    assert paths_of(*NETWORKS["byot"]) == {
        "branch1": "stage1 16x32x32 > bottleneck 64 /4 > head",
        "branch2": "stage2 32x16x16 > bottleneck 64 /2 > head",
        "deepest": "stage3 64x8x8 > head",
    }
    both = paths_of(*NETWORKS["both"])
    assert both["side"] == "fused map 32x16x16 > sepconv 64 /2 > head"
    assert paths_of(*NETWORKS["side"])["deepest"] == "stage3 64x8x8 > head"


def test_taps_may_be_given_in_any_order() -> None:
    in_order = TAPS.replace("[stage3, stage2.block1, stage1]", "[stage1, stage2.block1, stage3]")
    result = cached_probe(*NETWORKS["trunk"])
    assert result.heads == cached_probe(in_order, "data.name=cifar10").heads
    second = heads_by_name(result)["branch2"]
    assert second.path == "stage2.block1 128x16x16 > sepconv 256 /2 | sepconv 512 /2 > head"
    assert [layer.shape for layer in second.layers] == [(128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_costs_of_heads_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    """Two workers use synchronised batch norm, which torch.fx can't trace."""
    assert estimate_cost(config(*SMALL), workers=workers).heads == cached_probe(*SMALL).heads


def test_the_table_fits_120_columns_and_is_ascii_in_a_file() -> None:
    text = cached_probe(*NETWORKS["trunk"]).render(io.StringIO())
    assert max(map(len, text.splitlines())) <= 120
    assert text.isascii()
    last = [line for line in text.splitlines() if line.startswith("all ")]
    assert re.fullmatch(r"all +12\.\d{3} M +\d{3}\.\d\d M +100\.0%", last[0])


def test_a_terminal_gets_box_lines_and_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real pseudo-terminal whose other end is not read."""
    reader, writer = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with os.fdopen(reader), os.fdopen(writer, "w") as terminal:
        output = cached_probe(*SMALL).render_network(terminal)
    assert "┃" in output
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in output.splitlines()) <= 120
    assert not re.search(r"\x1b\[3\d", output)
