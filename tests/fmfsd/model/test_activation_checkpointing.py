"""A run whose blocks compute their maps twice is the same run, and keeps less."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fmfsd.config import load_config
from fmfsd.distributed.collectives import Comms, SoloComms
from fmfsd.distributed.sync_batch_norm import GlobalBatchNorm2d
from fmfsd.engine.build import build_loss
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import ConfigError
from fmfsd.model.activation_checkpointing import recomputed
from fmfsd.model.backbones import Backbone
from fmfsd.model.build import build_network
from fmfsd.run.run_dir import RunDir
from tests.helpers.costs import saved_bytes
from tests.helpers.runs import make_loop, make_run, newest_weights, tiny_config, train_run
from tests.helpers.workers import run_workers


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("workers", [1, 2])
def test_weights_statistics_and_momenta_are_the_same_to_the_last_bit(
    workers: int, tiny_root: Path, tmp_path: Path
) -> None:
    """With several workers batch norm talks to the others in the backward pass once more."""
    runs = [
        make_run(tmp_path / recompute, tiny_config(tiny_root, f"train.recompute={recompute}"))
        for recompute in ("none", "branches", "all")
    ]
    for run in runs:
        run_workers(train_run, workers, run.path)
    assert len(set(map(newest_weights, runs))) == 1


def calls_of_a_step(comms: Comms, folder: Path) -> int:
    with closing(make_loop(RunDir(folder), comms)) as loop:
        loop.resume()
        before = comms.activity.calls
        loop._train_one_step()
        return comms.activity.calls - before


@pytest.mark.usefixtures("processes")
def test_workers_ask_one_another_once(tiny_root: Path, tmp_path: Path) -> None:
    """A second pass of batch norm over workers has the statistics of the first."""
    runs = [
        make_run(tmp_path / recompute, tiny_config(tiny_root, f"train.recompute={recompute}")).path
        for recompute in ("none", "all")
    ]
    (none, _), (everything, _) = (run_workers(calls_of_a_step, 2, run) for run in runs)
    assert none == everything > 20


@pytest.mark.parametrize(("method", "share"), [("plain", 0.4), ("fmfsd", 0.45)])
def test_less_is_kept_for_the_backward_pass(method: str, share: float) -> None:
    """Beside what second passes start from: nothing of ResNet-8's blocks, and nothing of the paths of branches."""
    small = (f"method={method}", "model.backbone=resnet8", "train.batch=64", "train.precision=fp32")
    none, auto, branches, everything = (
        saved_bytes(SoloComms(), load_config("cifar100-resnet18", [*small, f"train.recompute={recompute}"]))
        for recompute in ("none", "auto", "branches", "all")
    )
    assert auto == branches
    assert everything < share * none
    assert (branches < 0.9 * none) == (method == "fmfsd")


def gradients_of_two_passes(passes: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor | None]:
    """Both forward, and then both backward; of a batch norm over two workers with the same maps."""
    generator = torch.Generator().manual_seed(0)
    norm = GlobalBatchNorm2d(nn.BatchNorm2d(3), lambda sums: sums * 2, 2)
    layers = nn.Sequential(nn.Tanh(), norm, nn.Tanh())
    one, other = (torch.randn(4, 3, 5, 5, generator=generator) * scale + scale for scale in (1, 3))
    both = passes(layers, one.requires_grad_()).sum() + passes(layers, other.requires_grad_()).square().sum()
    both.backward()
    return [one.grad, other.grad, norm.weight.grad, norm.running_mean, norm.num_batches_tracked]


def test_two_passes_have_the_statistics_of_each() -> None:
    once = gradients_of_two_passes(lambda layers, x: layers(x))
    for one, other in zip(gradients_of_two_passes(recomputed), once, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_only_training_computes_twice() -> None:
    network = build_network(load_config("cifar100-resnet18", ["model.backbone=resnet8", "train.recompute=all"]))
    passes = list[int]()
    assert isinstance(network.backbone, Backbone)
    for block in network.backbone.blocks():
        block.register_forward_pre_hook(lambda *_: passes.append(1))
    for training, expected in ((False, 3), (True, 6)):
        passes.clear()
        outputs = network.train(training)(torch.zeros(2, 3, 32, 32))
        torch.stack([each.sum() for each in outputs.logits]).sum().backward()
        assert len(passes) == expected


@pytest.mark.parametrize(
    ("engine", "expected"), [("name=torch", True), ("name=deepspeed", True), ("zero_stage=3", False)]
)
def test_by_itself_it_is_not_done_where_weights_are_gone_by_then(engine: str, expected: bool) -> None:
    zero = ("engine.name=deepspeed",) if engine.startswith("zero") else ()
    config = load_config("cifar100-resnet18", ["model.backbone=resnet8", *zero, f"engine.{engine}"])
    assert build_network(config).recomputes == expected


def test_by_itself_it_is_left_to_the_compiler_where_there_is_one() -> None:
    config = load_config("cifar100-resnet18", ["model.backbone=resnet8", "train.compile=true"])
    network, loss = build_network(config), build_loss(config)
    assert TorchEngine(network, loss, config, SoloComms(), torch.device("cpu")).is_compiled
    assert not network.recomputes


def test_what_is_not_made_of_blocks_is_refused() -> None:
    config = load_config("cifar100-resnet18", ["model.backbone=timm/test_vit", "method=byot", "train.recompute=all"])
    with pytest.raises(ConfigError, match="train.recompute: timm/test_vit is not a sequence of blocks"):
        build_network(config)
