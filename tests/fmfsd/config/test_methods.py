"""The values that each `method` sets, the values that may still be changed, and inconsistent values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fmfsd.config import RunConfig, dump_config, load_config
from fmfsd.config.methods import METHODS
from fmfsd.engine.build import build_loss
from fmfsd.errors import ConfigError
from fmfsd.model.build import build_network

DEFAULTS = {
    "model.fusion": "trunk",
    "model.masks": "averaged",
    "model.sem": "sge",
    "model.branch": "sepconv",
    "model.branches": ("stage1", "stage2", "stage3"),
    "distill.teacher": "deepest",
    "distill.t_squared": False,
    "distill.feature": "batch_norm",
    "distill.alpha": 0.3,
    "distill.beta": 0.03,
    "distill.temperature": 3.0,
    "distill.label_weight": 1.0,
    "train.label_smoothing": 0.0,
}
"""From sections 2 and 4 of the method, for ResNet-18."""
DIFFERENCES: Mapping[str, Mapping[str, Any]] = {
    "fmfsd": {},
    "fmfsd_side": {"model.fusion": "side"},
    "byot": {"model.fusion": "none", "model.branch": "bottleneck"},
    "byot_attention": {"model.fusion": "none", "model.branch": "attention"},
    "deep_supervision": {"model.fusion": "none", "distill.alpha": 0, "distill.beta": 0},
    "dks": {"model.fusion": "none", "distill.teacher": "all_pairs", "distill.feature": "none"},
    "eed": {"model.fusion": "none", "distill.teacher": "ensemble", "distill.feature": "none"},
    "plain": {"model.fusion": "none", "model.branches": ()},
    "label_smoothing": {"model.fusion": "none", "model.branches": (), "train.label_smoothing": 0.1},
}


def config_value(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sets_its_values_and_the_defaults(method: str) -> None:
    config = load_config("cifar100-resnet18", [f"method={method}"])
    assert {key: config_value(config, key) for key in DEFAULTS} == {**DEFAULTS, **DIFFERENCES[method]}


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_method_survives_a_yaml_round_trip(method: str, tmp_path: Path) -> None:
    config = load_config("cifar100-resnet18", [f"method={method}"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(str(path)) == config


HEADS = {
    **dict.fromkeys(("fmfsd", "fmfsd_side"), ("branch1", "fused", "deepest")),
    **dict.fromkeys(("byot", "byot_attention", "deep_supervision", "dks", "eed"), ("branch1", "branch2", "deepest")),
    **dict.fromkeys(("plain", "label_smoothing"), ("deepest",)),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_heads_feature_layers_and_loss_are_built(method: str) -> None:
    config = load_config("cifar100-resnet8", [f"method={method}"])
    network, loss = build_network(config), build_loss(config)
    assert network.head_names == HEADS[method]
    num_branches = sum(name.startswith("branch") for name in HEADS[method])
    without = {"deep_supervision": num_branches, "dks": num_branches, "eed": num_branches, "byot_attention": 1}.get(
        method, 0
    )
    assert len(network.projections) == num_branches - without
    assert (loss.teacher, loss.alpha, loss.label_smoothing) == (
        config.distill.teacher,
        config.distill.alpha,
        config.train.label_smoothing,
    )


CONTRADICTIONS = [
    ("fmfsd", "model", "fusion", "none", "trunk or side or both"),
    ("fmfsd_side", "model", "fusion", "trunk", "side"),
    ("byot", "model", "fusion", "side", "none"),
    ("byot_attention", "model", "fusion", "trunk", "none"),
    ("byot_attention", "model", "branch", "sepconv", "attention"),
    ("deep_supervision", "distill", "alpha", "0.3", "0"),
    ("deep_supervision", "distill", "beta", "0.03", "0"),
    ("dks", "distill", "teacher", "deepest", "all_pairs"),
    ("eed", "distill", "teacher", "all_pairs", "ensemble"),
    ("plain", "model", "branches", "auto", "[]"),
    ("label_smoothing", "model", "fusion", "trunk", "none"),
]


@pytest.mark.parametrize(("method", "section", "key", "value", "expected"), CONTRADICTIONS)
def test_a_value_that_contradicts_the_method_is_an_error_with_its_line(
    method: str, section: str, key: str, value: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"method: {method}\n{section}:\n  {key}: {value}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    message = f"{section}.{key}: method {method} requires {expected}, found {value}: change one of the two"
    assert f"{path}:3: {message}" in map(str, caught.value.problems)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("fmfsd", "model.fusion=both"),
        ("fmfsd_side", "model.branch=attention"),
        ("byot", "model.branch=sepconv"),
        ("byot", "distill.feature=mse"),
        ("deep_supervision", "model.branch=bottleneck"),
        ("dks", "distill.feature=batch_norm"),
        ("eed", "distill.alpha=0.5"),
        ("plain", "train.label_smoothing=0.2"),
        ("label_smoothing", "train.label_smoothing=0.2"),
    ],
)
def test_values_that_a_method_only_suggests_may_be_changed(method: str, change: str) -> None:
    key, _, text = change.partition("=")
    assert str(config_value(load_config("cifar100-resnet18", [f"method={method}", change]), key)) == text


def error_messages(*changes: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config("cifar100-resnet18", changes)
    return [problem.message for problem in caught.value.problems]


ONE_BRANCH = "model.branches=[stage2]"
INCONSISTENT = {
    ("model.sem=softmax",): "model.sem: the average of softmax masks is constant: set model.masks own",
    ("model.sem=softmax", "model.masks=own", ONE_BRANCH): "model.sem: softmax is computed over several maps",
    ("distill.teacher=fused", "method=byot"): "distill.teacher: there is no fused head without fusion (method byot)",
    ("distill.teacher=fused", "method=plain"): "distill.teacher: there is no fused head without fusion (method plain)",
    (
        "method=label_smoothing",
        "train.label_smoothing=0",
    ): "train.label_smoothing: is 0, so method label_smoothing equals method plain",
    ("model.branches=[]",): "model.branches: method fmfsd needs at least one; for the backbone alone set method: plain",
    ("model.branches=[]", "method=dks"): "model.branches: method dks needs at least one",
    ("model.branches=[stage4]",): "model.branches: resnet18 has no tap 'stage4'; it has stage1.block1, stage1, stage2",
    ("model.branches=[stage3.block2]",): "model.branches: resnet18 has no tap 'stage3.block2'",
    ("model.branches=[stage1, stage1]",): "model.branches: stage1 is listed 2 times: list it once",
    ("model.sem_groups=48",): "model.sem_groups: 48 groups do not divide a map's 64 channels",
}


@pytest.mark.parametrize("changes", INCONSISTENT, ids=" ".join)
def test_inconsistent_values_are_errors(changes: tuple[str, ...]) -> None:
    (message,) = error_messages(*changes)
    assert message.startswith(INCONSISTENT[changes])


@pytest.mark.parametrize(
    "changes",
    [
        ("model.sem=softmax", "model.masks=own"),
        ("model.sem=softmax", "method=byot"),
        ("model.sem=none", "model.masks=own", ONE_BRANCH),
        ("distill.teacher=fused", ONE_BRANCH),
        ("distill.teacher=all_pairs", "distill.feature=none"),
        ("model.branches=[stage4.block1, stage1.block1]",),
    ],
    ids=" ".join,
)
def test_consistent_values_are_accepted(changes: tuple[str, ...]) -> None:
    load_config("cifar100-resnet18", changes)
