"""Activation checkpointing: recomputed blocks do not change the result of a run, and save less memory."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fmfsd.config import load_config
from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.distributed.sync_batch_norm import SyncBatchNorm2d
from fmfsd.engine.build import build_loss
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import ConfigError
from fmfsd.model.activation_checkpointing import checkpoint_activations
from fmfsd.model.backbones import Backbone
from fmfsd.model.build import build_network
from fmfsd.run.run_dir import RunDir
from tests.helpers.costs import measure_saved_bytes
from tests.helpers.runs import make_loop, make_run, newest_weights, tiny_config, train_run
from tests.helpers.workers import run_workers


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("workers", [1, 2])
def test_weights_statistics_and_momenta_are_bit_for_bit_the_same(workers: int, tiny_root: Path, tmp_path: Path) -> None:
    """With several workers, batch norm uses collectives in the backward pass."""
    runs = [
        make_run(tmp_path / recompute, tiny_config(tiny_root, f"train.recompute={recompute}"))
        for recompute in ("none", "branches", "all")
    ]
    for run in runs:
        run_workers(train_run, workers, run.path)
    assert len(set(map(newest_weights, runs))) == 1


def count_collectives_of_a_step(comms: Comms, folder: Path) -> int:
    with closing(make_loop(RunDir(folder), comms)) as loop:
        loop.resume()
        before = comms.activity.calls
        loop._train_one_step()
        return comms.activity.calls - before


@pytest.mark.usefixtures("processes")
def test_recomputing_needs_no_additional_collectives(tiny_root: Path, tmp_path: Path) -> None:
    """The second forward pass of synchronised batch norm reuses the statistics of the first."""
    runs = [
        make_run(tmp_path / recompute, tiny_config(tiny_root, f"train.recompute={recompute}")).path
        for recompute in ("none", "all")
    ]
    (none, _), (everything, _) = (run_workers(count_collectives_of_a_step, 2, run) for run in runs)
    assert none == everything > 20


@pytest.mark.parametrize(("method", "share"), [("plain", 0.4), ("fmfsd", 0.45)])
def test_less_memory_is_saved_for_the_backward_pass(method: str, share: float) -> None:
    """Only the inputs of recomputed parts are saved: nothing inside ResNet-8's blocks and inside branches."""
    small = (f"method={method}", "model.backbone=resnet8", "train.batch=64", "train.precision=fp32")
    none, auto, branches, everything = (
        measure_saved_bytes(
            SingleWorkerComms(), load_config("cifar100-resnet18", [*small, f"train.recompute={recompute}"])
        )
        for recompute in ("none", "auto", "branches", "all")
    )
    assert auto == branches
    assert everything < share * none
    assert (branches < 0.9 * none) == (method == "fmfsd")


def gradients_after_two_passes(forward: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor | None]:
    """Make two forward passes and one backward pass of both, with batch norm as over two workers with equal maps."""
    generator = torch.Generator().manual_seed(0)
    norm = SyncBatchNorm2d(nn.BatchNorm2d(3), lambda sums: sums * 2, 2)
    layers = nn.Sequential(nn.Tanh(), norm, nn.Tanh())
    one, other = (torch.randn(4, 3, 5, 5, generator=generator) * scale + scale for scale in (1, 3))
    both = forward(layers, one.requires_grad_()).sum() + forward(layers, other.requires_grad_()).square().sum()
    both.backward()
    return [one.grad, other.grad, norm.weight.grad, norm.running_mean, norm.num_batches_tracked]


def test_each_of_two_passes_uses_its_own_statistics() -> None:
    without_recomputing = gradients_after_two_passes(lambda layers, x: layers(x))
    for one, other in zip(gradients_after_two_passes(checkpoint_activations), without_recomputing, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_blocks_are_recomputed_only_in_training() -> None:
    network = build_network(load_config("cifar100-resnet18", ["model.backbone=resnet8", "train.recompute=all"]))
    calls = list[int]()
    assert isinstance(network.backbone, Backbone)
    for block in network.backbone.blocks():
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    for training, expected in ((False, 3), (True, 6)):
        calls.clear()
        outputs = network.train(training)(torch.zeros(2, 3, 32, 32))
        torch.stack([each.sum() for each in outputs.logits]).sum().backward()
        assert len(calls) == expected


@pytest.mark.parametrize(
    ("engine", "expected"), [("name=torch", True), ("name=deepspeed", True), ("zero_stage=3", False)]
)
def test_auto_does_not_recompute_if_zero_has_released_the_weights(engine: str, expected: bool) -> None:
    zero = ("engine.name=deepspeed",) if engine.startswith("zero") else ()
    config = load_config("cifar100-resnet18", ["model.backbone=resnet8", *zero, f"engine.{engine}"])
    assert build_network(config).recomputes == expected


def test_auto_does_not_recompute_in_a_compiled_step() -> None:
    config = load_config("cifar100-resnet18", ["model.backbone=resnet8", "train.compile=true"])
    network, loss = build_network(config), build_loss(config)
    assert TorchEngine(network, loss, config, SingleWorkerComms(), torch.device("cpu")).is_compiled
    assert not network.recomputes


def test_a_backbone_without_blocks_cannot_recompute_them() -> None:
    config = load_config("cifar100-resnet18", ["model.backbone=timm/test_vit", "method=byot", "train.recompute=all"])
    with pytest.raises(ConfigError, match="train.recompute: timm/test_vit is not a sequence of blocks"):
        build_network(config)
