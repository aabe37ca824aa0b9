"""The memory and compute that a probe estimates without allocating anything are those of a real worker."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fmfsd.config import RunConfig, load_config
from fmfsd.cost.measure.estimate import _count_parameters, estimate_cost
from fmfsd.cpu import tensor_layout
from fmfsd.data.loading.shards_in_memory import load_worker_shards
from fmfsd.data.shards.index import prepared_set_folder, read_index
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.engine.build import build_loss
from fmfsd.engine.torch_engine import TorchEngine
from fmfsd.errors import ConfigError
from fmfsd.model.build import build_network
from tests.helpers.costs import measure_saved_bytes

SMALL = ("model.backbone=resnet8", "train.batch=64")


def config(*changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", changes)


def real_engine(run_config: RunConfig) -> TorchEngine:
    return TorchEngine(
        build_network(run_config), build_loss(run_config), run_config, SingleWorkerComms(), torch.device("cpu")
    )


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
    """Compare the backbone's values in millions, and FMFSD's factors relative to it."""
    one, *others = (
        estimate_cost(config(f"model.backbone={backbone}", *changes), workers=1)
        for changes in (["method=plain"], ["distill.beta=0"], [])
    )
    assert one.parameters.total / 1e6 == pytest.approx(base[0], abs=5e-4)
    assert one.macs / 1e6 == pytest.approx(base[1], abs=0.06)
    for other, expected in zip(others, (without_features, with_features), strict=True):
        factors = other.parameters.total / one.parameters.total, other.macs / one.macs
        assert tuple(round(factor, 3) for factor in factors) == expected
        assert other.parameters.backbone == one.parameters.total


def test_multiply_adds_of_a_small_network_are_those_computed_by_hand() -> None:
    """ResNet-8: a 3x3 stem, two 3x3 convolutions per stage, 1x1 shortcuts into stages 2 and 3, a classifier."""
    stem = 9 * 3 * 16 * 32**2
    stages = [2 * 9 * 16 * 16 * 32**2]
    for before, after, side in ((16, 32, 16), (32, 64, 8)):
        stages.append((9 * before * after + 9 * after * after + before * after) * side**2)
    result = estimate_cost(config(*SMALL, "method=plain", "train.precision=fp32"), workers=4)
    assert result.macs == stem + sum(stages) + 64 * 100


def test_heads_are_reported_with_their_taps_and_map_shapes() -> None:
    result = estimate_cost(config("model.branches=[stage1, stage3]", "train.batch=64"), workers=1)
    assert [(head.name, head.tap, head.shape) for head in result.heads] == [
        ("branch1", "stage1", (64, 32, 32)),
        ("fused", "stage3", (256, 8, 8)),
        ("deepest", "stage4", (512, 4, 4)),
    ]


@pytest.mark.parametrize("method", ["fmfsd", "byot", "plain"])
def test_every_parameter_belongs_to_one_part(method: str) -> None:
    result = _count_parameters(build_network(config(*SMALL, f"method={method}")))
    assert result.backbone + result.branches + result.fusion == result.total
    assert (result.branches > 0, result.fusion > 0) == (method != "plain", method == "fmfsd")


@pytest.mark.parametrize(
    "changes", [(), ("optim.momentum=0",), ("train.precision=fp64", "method=byot"), ("train.ema=0.9",)]
)
def test_weights_gradients_and_optimizer_state_are_those_of_an_engine_after_a_step(changes: tuple[str, ...]) -> None:
    run_config = config(*SMALL, *changes)
    engine, kind = real_engine(run_config), torch.float64 if run_config.train.precision == "fp64" else torch.float32
    terms = engine.compute_terms(torch.zeros(64, 3, 32, 32, dtype=kind), torch.zeros(64, dtype=torch.int64))
    engine.backward(terms.label + terms.soft_target + terms.squares_F.sum())
    gradients = [parameter.grad for parameter in engine.network.parameters() if parameter.grad is not None]
    engine.step(0.1)
    result = estimate_cost(run_config, workers=1).memory
    assert result.parameters == size(engine.network.parameters())
    assert result.gradients == size(gradients)
    assert result.buffers == size(engine.network.buffers())
    assert result.optimizer == size(engine.state().optimizer.values())


def test_zero_divides_the_state_of_workers_and_offloading_moves_it() -> None:
    """In addition to the momenta, ZeRO's optimizer has its own copy of the weights."""
    by = {stage: ("engine.name=deepspeed", f"engine.zero_stage={stage}") for stage in range(4)}
    whole = estimate_cost(config(*SMALL, *by[0]), workers=2).memory
    divided = {stage: estimate_cost(config(*SMALL, *by[stage]), workers=2).memory for stage in (1, 2, 3)}
    assert [each.optimizer for each in divided.values()] == 3 * [whole.optimizer]
    assert [each.gradients * 2 // whole.gradients for each in divided.values()] == [2, 1, 1]
    assert [each.parameters * 2 // whole.parameters for each in divided.values()] == [2, 2, 1]
    offloading = estimate_cost(config(*SMALL, *by[2], "engine.offload=true"), workers=2).memory
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
    """In bf16, torch's meta tensors have batch statistics in bf16, real tensors in fp32."""
    formats = (f"train.precision={precision}", f"train.channels_last={layout}", f"method={method}")
    run_config = config(*SMALL, *formats)
    expected = measure_saved_bytes(SingleWorkerComms(), run_config)
    assert estimate_cost(run_config, workers=1).memory.activations == pytest.approx(expected, rel=tolerance, abs=0)


def gpu_activations(*changes: str) -> int:
    return estimate_cost(config(*SMALL, "train.precision=bf16", *changes), workers=1, device="cuda").memory.activations


def test_the_estimate_for_a_gpu_does_not_depend_on_this_machines_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The CPU kernel is not requested."""
    expected = [gpu_activations(*changes) for changes in ((), ("train.compile=false",))]
    monkeypatch.setattr("fmfsd.cpu.tensor_layout._library", lambda *_: pytest.fail("requested a kernel"))
    assert [gpu_activations(*changes) for changes in ((), ("train.compile=false",))] == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_torch_compile_a_gpu_saves_what_pytorchs_operations_save(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expected value is measured on a CPU without our kernel."""
    run_config = config(*SMALL, f"train.precision={precision}", "train.compile=false")
    result = estimate_cost(run_config, workers=1, device="cuda").memory.activations
    with tensor_layout.disable_kernels():
        expected = measure_saved_bytes(SingleWorkerComms(), run_config)
    assert result == pytest.approx(expected, rel=1e-4)
    assert result > estimate_cost(run_config, workers=1, device="cpu").memory.activations > 0


@pytest.mark.parametrize("change", ["engine.name=deepspeed", "train.compile=false", "train.recompute=branches"])
def test_a_compiled_step_saves_less_than_single_operations(change: str) -> None:
    assert gpu_activations() == gpu_activations("train.compile=true") < gpu_activations(change)


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_the_data_are_those_of_the_worker_with_most_samples(workers: int, synthetic_root: Path) -> None:
    run_config = load_config("smoke", ["train.batch=64"], data_root=str(synthetic_root))
    index = read_index(prepared_set_folder(run_config.data))
    own_shards = [load_worker_shards(index, split, rank=0, world_size=workers) for split in index.splits]
    expected = sum(size((shards.images, shards.labels, shards.ids)) for shards in own_shards)
    assert estimate_cost(run_config, workers=workers).memory.data == expected


def test_a_probe_does_not_allocate_the_memory_that_it_counts() -> None:
    """The estimate is 28 GiB, nearly all of it activations."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = estimate_cost(load_config("cifar100-resnet18-b2048", ["model.backbone=resnet50"]), workers=1).memory
    parts = (result.parameters, result.buffers, result.gradients, result.optimizer, result.activations, result.data)
    assert result.total == sum(parts) > 28 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < 1 << 30


def test_a_number_of_workers_that_does_not_divide_the_shards_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"3 workers do not divide data\.shards 64: use one of 1, 2, 4, 8, 16, 32, 64"
    ):
        estimate_cost(config(), workers=3)


def test_batches_that_are_too_small_for_batch_norm_are_an_error_of_the_probe() -> None:
    """Each worker has one image, whose last feature maps have one position."""
    changes = ("model.backbone=timm/convnext_atto", "data.shards=4", "train.batch=4", "model.sync_bn=false")
    with pytest.raises(ConfigError, match="a worker can't train on 1 images at a time: Expected more than 1 value"):
        estimate_cost(config(*changes), workers=4)
