"""timm weights from a folder or a repository of the hub, and the channel statistics of their training."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

import fmfsd
from fmfsd.config import RunConfig, dump_config, load_config
from fmfsd.cost.measure.estimate import estimate_cost
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import ConfigError
from fmfsd.evaluation.trained_run import load_run_config
from fmfsd.model.build import build_network
from launcher.check.data_checks import warn_other_statistics
from launcher.resources.config_cost import Costs
from tests.helpers.runs import make_run, tiny_config, train_run

TEST_RESNET = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and std in timm's config of test_resnet: timm/models/resnet.py."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with weights saved by timm."""
    torch.manual_seed(5)
    path = tmp_path / "weights"
    save_for_hf(timm.create_model("test_resnet"), path)
    return path


def config(*changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", ["method=plain", "model.branches=[]", *changes])


def convolutions(weights: dict[str, Tensor] | nn.Module) -> list[Tensor]:
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return [tensor for tensor in state.values() if tensor.dim() == 4]


def build_error(*changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build_network(config(*changes))
    return str(caught.value)


def test_weights_of_a_folder_are_the_initial_weights(folder: Path) -> None:
    resolved = config(f"model.backbone=timm/local-dir:{folder}")
    assert (resolved.model.backbone, resolved.model.pretrained) == ("timm/test_resnet", f"local-dir:{folder}")
    saved = convolutions(torch.load(folder / "pytorch_model.bin", weights_only=True))
    loaded = convolutions(build_network(resolved).backbone)
    assert all(torch.equal(one, other) for one, other in zip(saved, loaded, strict=True))


def test_a_folder_may_be_given_together_with_the_architecture(folder: Path) -> None:
    with_architecture = config("model.backbone=timm/test_resnet", f"model.pretrained=local-dir:{folder}")
    assert with_architecture == config(f"model.backbone=timm/local-dir:{folder}")


def test_a_relative_folder_is_made_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert config("model.backbone=timm/local-dir:weights").model.pretrained == f"local-dir:{folder}"
    with_architecture = config("model.backbone=timm/test_resnet", "model.pretrained=local-dir:weights")
    assert with_architecture.model.pretrained == f"local-dir:{folder}"


def test_hub_names_of_timms_own_weights_are_resolved_to_its_models() -> None:
    resolved = config("model.backbone=timm/hf-hub:timm/resnet18.a1_in1k")
    assert (resolved.model.backbone, resolved.model.pretrained) == ("timm/resnet18.a1_in1k", True)


def test_the_weights_of_another_repository_are_read_from_the_hubs_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--user--net" / "snapshots" / "0123"
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    resolved = config("model.backbone=timm/test_resnet", "model.pretrained=hf-hub:user/net")
    saved = convolutions(torch.load(folder / "pytorch_model.bin", weights_only=True))
    assert all(map(torch.equal, saved, convolutions(build_network(resolved).backbone)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["model.backbone=timm/hf-hub:user/net"],
            "set model.backbone timm/ARCHITECTURE and model.pretrained",
        ),
        (["model.backbone=timm/local-dir:nowhere"], "nowhere/config.json can't be read: No such file or directory"),
        (["model.backbone=timm/test_resnet", "model.pretrained=yes"], "expected"),
        (["model.backbone=timm/test_resnet", "model.pretrained=local-dir:nowhere"], "can't load its weights"),
        (["data.mean=auto"], "data.mean: auto uses the values of timm's weights, and resnet18 has none"),
    ],
)
def test_weights_that_cannot_be_read_are_an_error_with_the_reason(
    changes: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in build_error(*changes)


def test_weights_of_another_or_modified_architecture_are_errors(folder: Path) -> None:
    changes = ("model.backbone=timm/test_vit3", f"model.pretrained=local-dir:{folder}")
    assert "are for test_resnet, not for test_vit3" in build_error(*changes)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "model_args": {"act_layer": "silu"}}))
    assert "are for a modified architecture ({'act_layer': 'silu'})" in build_error(
        f"model.backbone=timm/local-dir:{folder}"
    )


def statistics_warnings(*changes: str) -> list[str]:
    resolved = config(*changes)
    return list(warn_other_statistics(resolved, Costs(probe=estimate_cost(resolved, workers=1))))


def test_channel_statistics_that_differ_from_those_of_the_weights_are_a_warning(folder: Path) -> None:
    backbone = f"model.backbone=timm/local-dir:{folder}"
    mean, std = statistics_warnings(backbone)
    assert mean.startswith(
        "data.mean is 0.4914, 0.4822, 0.4465, the pretrained weights were trained with 0.5, 0.5, 0.5"
    )
    assert std.startswith("data.std is 0.2023, 0.1994, 0.201, the pretrained weights were trained with 0.5, 0.5, 0.5")
    assert statistics_warnings(backbone, "data.mean=auto", "data.std=[0.5, 0.5, 0.5]") == []
    assert statistics_warnings("model.backbone=timm/test_resnet") == []


def test_a_run_stores_its_channel_statistics(
    folder: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resuming and loading a run need neither the folder of the weights nor the internet."""
    auto = (f"model.backbone=timm/local-dir:{folder}", "data.mean=auto", "data.std=auto")
    resolved = tiny_config(tiny_root, "method=plain", "train.max_steps=2", "optim.milestones=[]", *auto)
    run = make_run(tmp_path / "run", resolved)
    assert load_run_config(run).data.channel_statistics == TEST_RESNET
    train_run(SingleWorkerComms(), run.path, 1)
    shutil.rmtree(folder)
    assert load_config(str(run.config)).data.mean == "auto"
    assert train_run(SingleWorkerComms(), run.path) == "finished"
    mean, std = (tuple(values.flatten().tolist()) for values in _statistics(fmfsd.load(run.path)))
    assert (mean, std) == TEST_RESNET


def _statistics(classifier: nn.Module) -> Sequence[Tensor]:
    return [getattr(classifier, name) for name in ("mean", "std")]


def test_images_are_normalised_with_the_statistics_of_the_weights(
    folder: Path, tiny_root: Path, tmp_path: Path
) -> None:
    changes = ("method=plain", "train.max_steps=2", "optim.milestones=[]", f"model.backbone=timm/local-dir:{folder}")
    losses = []
    for name, statistics in {"auto": ("auto", "auto"), "explicit": TEST_RESNET, "cifar": ()}.items():
        keys = [
            f"data.{key}={list(v) if v != 'auto' else v}" for key, v in zip(("mean", "std"), statistics, strict=False)
        ]
        run = make_run(tmp_path / name, tiny_config(tiny_root, *changes, *keys))
        train_run(SingleWorkerComms(), run.path)
        losses.append([json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()])
    assert losses[0] == losses[1] != losses[2]
    assert "auto" in dump_config(load_config(str(tmp_path / "auto" / "config.yaml")))
    assert os.path.exists(tmp_path / "auto" / "classes.json")
