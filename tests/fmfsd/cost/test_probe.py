"""What a probe says of a config is what a worker has, though nothing of it is made."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fmfsd.config import RunConfig, load_config
from fmfsd.cost.measure.probe import _parameters, probe
from fmfsd.cpu import tensor_layout
from fmfsd.data.loading.shards_in_memory import load_own_shards
from fmfsd.data.shards.index import read_index, set_folder
from fmfsd.distributed.collectives import SoloComms
from fmfsd.engine.build import build_loss
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import ConfigError
from fmfsd.model.build import build_network
from tests.helpers.costs import saved_bytes

SMALL = ("model.backbone=resnet8", "train.batch=64")


def config(*changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", changes)


def real_engine(wanted: RunConfig) -> TorchEngine:
    return TorchEngine(build_network(wanted), build_loss(wanted), wanted, SoloComms(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("backbone", "base", "without_features", "with_features"),
    [
        ("resnet18", (11.220, 555.5), (1.079, 1.036), (1.125, 1.037)),
        ("resnet34", (21.328, 1159.5), (1.041, 1.017), (1.066, 1.018)),
        ("resnet50", (23.705, 1298.0), (1.503, 1.236), (1.857, 1.242)),
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(
    backbone: str, base: tuple[float, float], without_features: tuple[float, float], with_features: tuple[float, float]
) -> None:
    """Of the backbone in millions, and FMFSD's factors over it."""
    one, *others = (
        probe(config(f"model.backbone={backbone}", *changes), workers=1)
        for changes in (["method=plain"], ["distill.beta=0"], [])
    )
    assert one.parameters.total / 1e6 == pytest.approx(base[0], abs=5e-4)
    assert one.macs / 1e6 == pytest.approx(base[1], abs=0.06)
    for other, expected in zip(others, (without_features, with_features), strict=True):
        factors = other.parameters.total / one.parameters.total, other.macs / one.macs
        assert tuple(round(factor, 3) for factor in factors) == expected
        assert other.parameters.backbone == one.parameters.total


def test_multiply_adds_of_a_small_network_are_those_of_its_convolutions() -> None:
    """ResNet-8: a 3x3 stem, two 3x3 convolutions a stage, 1x1 shortcuts into the second and third, a classifier."""
    stem = 9 * 3 * 16 * 32**2
    stages = [2 * 9 * 16 * 16 * 32**2]
    for before, after, side in ((16, 32, 16), (32, 64, 8)):
        stages.append((9 * before * after + 9 * after * after + before * after) * side**2)
    found = probe(config(*SMALL, "method=plain", "train.precision=fp32"), workers=4)
    assert found.macs == stem + sum(stages) + 64 * 100


def test_heads_are_told_with_the_maps_that_they_start_from() -> None:
    found = probe(config("model.branches=[stage1, stage3]", "train.batch=64"), workers=1)
    assert [(head.name, head.tap, head.shape) for head in found.heads] == [
        ("branch1", "stage1", (64, 32, 32)),
        ("fused", "stage3", (256, 8, 8)),
        ("deepest", "stage4", (512, 4, 4)),
    ]


@pytest.mark.parametrize("method", ["fmfsd", "byot", "plain"])
def test_every_parameter_is_of_one_part(method: str) -> None:
    found = _parameters(build_network(config(*SMALL, f"method={method}")))
    assert found.backbone + found.branches + found.fusion == found.total
    assert (found.branches > 0, found.fusion > 0) == (method != "plain", method == "fmfsd")


@pytest.mark.parametrize(
    "changes", [(), ("optim.momentum=0",), ("train.precision=fp64", "method=byot"), ("train.ema=0.9",)]
)
def test_what_weights_gradients_and_momenta_take_is_what_an_engine_holds_after_a_step(changes: tuple[str, ...]) -> None:
    wanted = config(*SMALL, *changes)
    engine, kind = real_engine(wanted), torch.float64 if wanted.train.precision == "fp64" else torch.float32
    terms = engine.terms(torch.zeros(64, 3, 32, 32, dtype=kind), torch.zeros(64, dtype=torch.int64))
    engine.backward(terms.label + terms.soft_target + terms.squares_F.sum())
    gradients = [parameter.grad for parameter in engine.network.parameters() if parameter.grad is not None]
    engine.step(0.1)
    found = probe(wanted, workers=1).memory
    assert found.parameters == size(engine.network.parameters())
    assert found.gradients == size(gradients)
    assert found.buffers == size(engine.network.buffers())
    assert found.optimizer == size(engine.state().optimizer.values())


def test_zero_divides_what_workers_hold_and_offloading_puts_it_elsewhere() -> None:
    """Beside the momenta, ZeRO's optimizer has weights of its own."""
    by = {stage: ("engine.name=deepspeed", f"engine.zero_stage={stage}") for stage in range(4)}
    whole = probe(config(*SMALL, *by[0]), workers=2).memory
    divided = {stage: probe(config(*SMALL, *by[stage]), workers=2).memory for stage in (1, 2, 3)}
    assert [each.optimizer for each in divided.values()] == 3 * [whole.optimizer]
    assert [each.gradients * 2 // whole.gradients for each in divided.values()] == [2, 1, 1]
    assert [each.parameters * 2 // whole.parameters for each in divided.values()] == [2, 2, 1]
    offloading = probe(config(*SMALL, *by[2], "engine.offload=true"), workers=2).memory
    assert (offloading.optimizer, offloading.offloaded) == (0, divided[2].optimizer)
    assert offloading.total == divided[2].total - divided[2].optimizer


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


@pytest.mark.parametrize("layout", ["true", "false"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.0), ("fp64", 0.0), ("bf16", 1e-4)])
@pytest.mark.parametrize("method", ["fmfsd", "plain"])
def test_activations_are_what_a_real_forward_pass_saves(
    method: str, precision: str, tolerance: float, layout: str
) -> None:
    """In bf16, torch's tensors without memory have batch statistics of bf16, where real ones have fp32."""
    form = (f"train.precision={precision}", f"train.channels_last={layout}", f"method={method}")
    wanted = config(*SMALL, *form)
    expected = saved_bytes(SoloComms(), wanted)
    assert probe(wanted, workers=1).memory.activations == pytest.approx(expected, rel=tolerance, abs=0)


def on_a_gpu(*changes: str) -> int:
    return probe(config(*SMALL, "train.precision=bf16", *changes), workers=1, device="cuda").memory.activations


def test_what_a_gpu_needs_does_not_depend_on_this_machines_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Our kernel for CPUs is not asked."""
    expected = [on_a_gpu(*changes) for changes in ((), ("train.compile=false",))]
    monkeypatch.setattr("fmfsd.cpu.tensor_layout._library", lambda *_: pytest.fail("asked for a kernel"))
    assert [on_a_gpu(*changes) for changes in ((), ("train.compile=false",))] == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_without_a_compiler_keeps_what_pytorchs_operations_save(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what a CPU without our kernel saves, counted in a real pass."""
    wanted = config(*SMALL, f"train.precision={precision}", "train.compile=false")
    found = probe(wanted, workers=1, device="cuda").memory.activations
    with tensor_layout.left_out():
        expected = saved_bytes(SoloComms(), wanted)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > probe(wanted, workers=1, device="cpu").memory.activations > 0


@pytest.mark.parametrize("change", ["engine.name=deepspeed", "train.compile=false", "train.recompute=branches"])
def test_a_compiled_program_keeps_less_than_single_operations_do(change: str) -> None:
    assert on_a_gpu() == on_a_gpu("train.compile=true") < on_a_gpu(change)


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_the_data_is_what_the_worker_with_most_holds(workers: int, synthetic_root: Path) -> None:
    wanted = load_config("smoke", ["train.batch=64"], data_root=str(synthetic_root))
    index = read_index(set_folder(wanted.data))
    held = [load_own_shards(index, split, rank=0, world_size=workers) for split in index.splits]
    expected = sum(size((shards.images, shards.labels, shards.ids)) for shards in held)
    assert probe(wanted, workers=workers).memory.data == expected


def test_a_probe_takes_no_memory_of_what_it_counts() -> None:
    """28 GiB, nearly all of it activations."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = probe(load_config("cifar100-resnet18-b2048", ["model.backbone=resnet50"]), workers=1).memory
    parts = (found.parameters, found.buffers, found.gradients, found.optimizer, found.activations, found.data)
    assert found.total == sum(parts) > 28 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < 1 << 30


def test_workers_that_do_not_divide_the_shards_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"3 workers do not divide data\.shards 64: use one of 1, 2, 4, 8, 16, 32, 64"
    ):
        probe(config(), workers=3)


def test_batches_that_batch_norm_can_not_take_are_refused_before_a_worker_meets_them() -> None:
    """One image a worker, whose last maps have one position."""
    changes = ("model.backbone=timm/convnext_atto", "data.shards=4", "train.batch=4", "model.sync_bn=false")
    with pytest.raises(ConfigError, match="a worker can't train on 1 images at a time: Expected more than 1 value"):
        probe(config(*changes), workers=4)
