"""What the probe says of each head: its path, what it adds to training, and what it costs alone."""

import io
import os
import re
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fmfsd.config import RunConfig, load_config
from fmfsd.cost.estimate import HeadCost, Probe
from fmfsd.cost.measure.probe import probe
from fmfsd.evaluation.exit_thresholds import NEVER
from fmfsd.model.build import build_network
from fmfsd.model.early_exit import EarlyExit, early_heads
from fmfsd.model.network import Network
from fmfsd.model.prune import prune
from tests.helpers.networks import macs

SMALL = ("model.backbone=resnet8", "train.batch=64")
PLACES = "model.branches=[stage3, stage2.block1, stage1]"
"""One of them inside a stage, and not in order."""


def config(*changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", changes)


@cache
def probed(*changes: str) -> Probe:
    return probe(config(*changes), workers=1)


def by_name(found: Probe) -> dict[str, HeadCost]:
    return {head.name: head for head in found.heads}


def test_early_exits_cost_the_published_share_of_the_plain_network() -> None:
    """Method, section 6: 0.293 and 0.546 for heads 1 and 2, 1.030 for the deepest after both; the fused is no exit."""
    found = probed("distill.beta=0")
    exits = {head.name: head.exits_of_plain for head in found.heads}
    assert exits == {
        "branch1": pytest.approx(0.293, abs=5e-4),
        "branch2": pytest.approx(0.546, abs=5e-4),
        "fused": None,
        "deepest": pytest.approx(1.0298, abs=5e-5),
    }
    assert found.plain.macs / 1e6 == pytest.approx(555.5, abs=0.06)
    assert round(found.macs / found.plain.macs, 3) == 1.036


FORMS = ("model.fusion=trunk", "model.fusion=side", "model.fusion=both", "method=byot", "method=byot_attention")
INSIDE_STAGES = "model.branches=[stage1.block2, stage2, stage3.block1]"
WITH_EXITS = [
    *((form, "model.backbone=resnet8") for form in FORMS),
    *((form, "model.backbone=resnet20", INSIDE_STAGES) for form in FORMS),
    *((f"model.backbone={backbone}",) for backbone in ("resnet18", "wrn16_8", "vgg11", "mobilenetv2", "squeezenet")),
    ("method=plain", "model.backbone=resnet8"),
    ("model.backbone=resnet18", "model.branches=[stage3]"),
    ("model.backbone=resnet18", "model.branch=bottleneck", "model.fusion=both"),
    *((f"model.backbone=timm/{name}",) for name in ("test_resnet", "test_efficientnet", "vit_tiny_patch16_224")),
    ("model.backbone=timm/test_vit", "model.fusion=side"),
]


def exits_by_running(network: Network) -> dict[str, float]:
    """Return the multiply-adds of an image that leaves at each exit, counted while it runs."""
    early = early_heads(network)
    forced = [[NEVER] * number + [0.0] * (len(early) - number) for number in range(len(early) + 1)]
    models = [EarlyExit(network, thresholds) for thresholds in forced]
    return {name: macs(model) for name, model in zip((*early, "deepest"), models, strict=True)}


@pytest.mark.parametrize("changes", WITH_EXITS, ids="-".join)
def test_each_exit_costs_what_running_it_costs(changes: tuple[str, ...]) -> None:
    found = probed(*changes)
    exits = {head.name: head.exits_of_plain for head in found.heads if head.exits_of_plain is not None}
    running = exits_by_running(build_network(config(*changes)))
    assert exits == {name: count / found.plain.macs for name, count in running.items()}


@pytest.mark.parametrize(
    ("backbone", "fusion", "parameters", "macs"),
    [
        ("resnet18", "trunk", 1.011, 1.018),
        ("resnet34", "trunk", 1.006, 1.009),
        ("resnet50", "trunk", 1.076, 1.118),
        ("resnet18", "side", 1.000, 1.000),
    ],
)
def test_the_deepest_head_alone_costs_what_is_published(
    backbone: str, fusion: str, parameters: float, macs: float
) -> None:
    found = probed(f"model.backbone={backbone}", f"model.fusion={fusion}", "distill.beta=0")
    deepest = by_name(found)["deepest"]
    assert round(deepest.alone.parameters / found.plain.parameters, 3) == parameters
    assert round(deepest.of_plain, 3) == macs
    assert ("can't be dropped at no cost" in found.advice()) == (fusion == "trunk")


NETWORKS = {
    "trunk": (PLACES, "data.name=cifar10"),
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
    """Parameters, and multiply-adds of an image, counted while the network computes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return sum(each.numel() for each in network.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_head_alone_costs_what_its_pruned_network_does(kind: str) -> None:
    network = build_network(config(*NETWORKS[kind]))
    expected = {name: size_of(prune(network, name)) for name in network.head_names}
    found = probed(*NETWORKS[kind]).heads
    assert {head.name: (head.alone.parameters, head.alone.macs) for head in found} == expected


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_parts_of_a_training_step_are_the_whole(kind: str) -> None:
    found = probed(*NETWORKS[kind])
    parts = (found.trunk, found.shared, *(head.own for head in found.heads))
    assert sum(part.parameters for part in parts) == found.parameters.total
    assert sum(part.macs for part in parts) == found.macs
    assert min(min(part.parameters, part.macs) for part in parts) >= 0
    shares = sum(head.training_share for head in found.heads)
    assert shares == pytest.approx(1 - (found.trunk.macs + found.shared.macs) / found.macs)


def test_what_only_one_head_needs_is_its_own() -> None:
    """ResNet-8, BYOT's attention: a branch from stage 1 has its attention gate, two separable blocks and two linear
    layers: a classifier, and one for the feature loss, which inference needs not; the last branch has no such layer."""

    def separable(channels_in: int, channels_out: int) -> int:
        """Two depthwise 3x3, two pointwise, two batch norms."""
        return 18 * channels_in + channels_in**2 + channels_in * channels_out + 2 * (channels_in + channels_out)

    classifier, feature = 64 * 100 + 100, 64 * 64 + 64
    found = by_name(probed(*NETWORKS["attention"]))
    first = separable(16, 16) + separable(16, 32) + separable(32, 64)
    assert found["branch1"].own.parameters == first + classifier + feature
    assert found["branch2"].own.parameters == separable(32, 32) + separable(32, 64) + classifier
    assert by_name(probed(*NETWORKS["plain"]))["deepest"].own.parameters == classifier


def paths_of(*changes: str) -> dict[str, str]:
    return {head.name: head.path for head in probed(*changes).heads}


def test_paths_are_told_in_words() -> None:
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


def test_a_tap_inside_a_stage_is_placed_in_any_order() -> None:
    in_order = PLACES.replace("[stage3, stage2.block1, stage1]", "[stage1, stage2.block1, stage3]")
    found = probed(*NETWORKS["trunk"])
    assert found.heads == probed(in_order, "data.name=cifar10").heads
    second = by_name(found)["branch2"]
    assert second.path == "stage2.block1 128x16x16 > sepconv 256 /2 | sepconv 512 /2 > head"
    assert [layer.shape for layer in second.layers] == [(128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("workers", [1, 2])
def test_many_workers_make_no_head_dearer(workers: int) -> None:
    """With synchronised batch norm, which torch.fx can't follow."""
    assert probe(config(*SMALL), workers=workers).heads == probed(*SMALL).heads


def test_the_table_fits_120_columns_and_is_plain_in_a_file() -> None:
    text = probed(*NETWORKS["trunk"]).text(io.StringIO())
    assert max(map(len, text.splitlines())) <= 120
    assert text.isascii()
    last = [line for line in text.splitlines() if line.startswith("all ")]
    assert re.fullmatch(r"all +12\.\d{3} M +\d{3}\.\d\d M +100\.0%", last[0])


def test_a_terminal_gets_lines_and_no_colour_where_it_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real terminal, whose other end nobody reads."""
    reader, writer = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with os.fdopen(reader), os.fdopen(writer, "w") as terminal:
        shown = probed(*SMALL).network_text(terminal)
    assert "┃" in shown
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in shown.splitlines()) <= 120
    assert not re.search(r"\x1b\[3\d", shown)
