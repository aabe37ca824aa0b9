"""Several workers: collectives, synchronised BN, bit-exact resuming, memory use, and joint failure."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmfsd.cpu import cpp_extension
from fmfsd.data.loading.shards_in_memory import ShardsInMemory
from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.distributed.sync_batch_norm import SyncBatchNorm2d, _moments, convert_batch_norm
from fmfsd.errors import CheckError, CheckpointError
from fmfsd.run.run_dir import RunDir
from tests.helpers.runs import (
    make_loop,
    make_run,
    newest_weights,
    read_records,
    tiny_config,
    train_run,
)
from tests.helpers.workers import run_workers

SMALL = ("data.shards=16", "train.batch=16")


def use_every_collective(comms: Comms) -> tuple[list[float], bool, bool, Any, list[Any]]:
    total = comms.all_reduce_(torch.tensor([comms.rank + 1.0, 1.0]))
    one, none = comms.any(comms.rank == 1), comms.any(False)
    shared = comms.broadcast_object({"a": [1, None, "ü"]} if comms.rank == 0 else None)
    return total.tolist(), one, none, shared, comms.all_gather_object(["ü" * comms.rank, None])


def use_them_in_two_process_groups(comms: Comms) -> tuple[Any, Any, bool]:
    """Use the default and a second process group; also return whether activity counts the calls in the second."""
    in_default_group = use_every_collective(comms)
    with comms.with_timeout(30) as second:
        before = comms.activity.calls
        in_second_group = use_every_collective(second)
        is_counted = comms.activity.calls > before
    assert comms.any(True)
    return in_default_group, in_second_group, is_counted


def test_collectives_return_the_same_on_all_workers() -> None:
    gathered = [["", None], ["ü", None], ["üü", None]]
    expected = ([6.0, 3.0], True, False, {"a": [1, None, "ü"]}, gathered)
    assert run_workers(use_them_in_two_process_groups, 3) == [(expected, expected, True)] * 3
    assert use_every_collective(SingleWorkerComms()) == ([1.0, 1.0], False, False, {"a": [1, None, "ü"]}, [["", None]])


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 3e-2}
CASES = [(dtype, layout) for dtype in TOLERANCES for layout in (torch.contiguous_format, torch.channels_last)]


def normalise_parts(comms: Comms) -> dict[tuple[torch.dtype, torch.memory_format], list[torch.Tensor]]:
    """Return output, input gradient, parameter gradients and running statistics for this worker's part of a batch."""
    return {case: _normalise_a_part(comms, *case) for case in CASES}


def _normalise_a_part(comms: Comms, dtype: torch.dtype, layout: torch.memory_format) -> list[torch.Tensor]:
    images, gradient, layer = _batch_norm_case(dtype, layout)
    layer = SyncBatchNorm2d(layer.double() if dtype == torch.float64 else layer, comms.all_reduce_, comms.size)
    part = slice(comms.rank * 8 // comms.size, (comms.rank + 1) * 8 // comms.size)
    x = images[part].clone(memory_format=layout).requires_grad_()
    y = layer(x)
    y.backward(gradient[part])
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    parameter_gradients = comms.all_reduce_(torch.stack([layer.weight.grad, layer.bias.grad]))
    return [y.detach(), x.grad, parameter_gradients, layer.running_mean, layer.running_var]


def _batch_norm_case(
    dtype: torch.dtype, layout: torch.memory_format
) -> tuple[torch.Tensor, torch.Tensor, nn.BatchNorm2d]:
    generator = torch.Generator().manual_seed(0)
    images, gradient = (torch.randn(8, 6, 5, 5, generator=generator).to(dtype) for _ in range(2))
    layer = nn.BatchNorm2d(6)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2, generator=generator)
        layer.bias.uniform_(-1, 1, generator=generator)
    return (images * 3 + 10).contiguous(memory_format=layout), gradient.contiguous(memory_format=layout), layer


@pytest.mark.parametrize("size", [2, 4])
def test_batch_norm_over_workers_is_batch_norm_over_the_whole_batch(size: int) -> None:
    parts = run_workers(normalise_parts, size)
    for dtype, layout in CASES:
        outputs, gradients, *same = zip(*(part[dtype, layout] for part in parts), strict=True)
        results = [torch.cat(outputs), torch.cat(gradients), *(first for first, *_ in same)]
        for one, other in zip(results, _normalise_the_whole(dtype, layout), strict=True):
            tolerance = TOLERANCES[dtype]
            absolute = tolerance * other.abs().max().item()
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=absolute)


def _normalise_the_whole(dtype: torch.dtype, layout: torch.memory_format) -> list[torch.Tensor]:
    """Return the expected values, in fp64 by PyTorch's own layer."""
    images, gradient, layer = _batch_norm_case(dtype, layout)
    layer, x = layer.double(), images.double().requires_grad_()
    y = layer(x)
    y.backward(gradient.double())
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    assert layer.running_mean is not None
    assert layer.running_var is not None
    parameter_gradients = torch.stack([layer.weight.grad, layer.bias.grad])
    return [y.detach(), x.grad, parameter_gradients, layer.running_mean, layer.running_var]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 0)]
)
def test_batch_norm_is_the_same_without_a_compiler(
    dtype: torch.dtype, tolerance: float, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 uses PyTorch's operations even with a compiler."""
    images, gradient, prototype = _batch_norm_case(dtype, layout)
    results = list[list[torch.Tensor]]()
    for _ in range(2):
        layer = SyncBatchNorm2d(prototype.double() if dtype == torch.float64 else prototype, lambda sums: sums * 2, 2)
        x = images.clone(memory_format=layout).requires_grad_()
        y = layer(x)
        y.backward(gradient)
        results.append([y, x.grad, layer.weight.grad, layer.running_mean, layer.running_var])  # type: ignore[list-item]
        monkeypatch.setattr(cpp_extension, "load_library", lambda *names: None)
    for one, other in zip(*results, strict=True):
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_moments_are_precise_far_from_zero_and_with_more_threads(layout: torch.memory_format) -> None:
    x = (torch.randn(5, 3, 40, 40, generator=torch.Generator().manual_seed(0)) + 1000).contiguous(memory_format=layout)
    x[0, :, 0, 0] = 1100
    one = _moments(x, torch.ones(3))
    mean, square = one
    expected = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, expected.mean(dim=1), rtol=1e-9, atol=0)
    torch.testing.assert_close(square - mean.square(), expected.var(dim=1, correction=0), rtol=1e-5, atol=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 2)
    assert torch.equal(_moments(x, torch.ones(3)), one)
    torch.set_num_threads(threads)


def test_every_batch_norm_of_a_network_is_replaced() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.BatchNorm2d(4))
    before = network.state_dict().keys()
    convert_batch_norm(network, lambda tensor: tensor, 2)
    kinds = [type(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert kinds == [SyncBatchNorm2d] * 2
    assert network.state_dict().keys() == before


def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tiny_root: Path, tmp_path: Path) -> None:
    """Without the warm-up passes, DDP's bucket rebuild would change the result of three or more workers that share no
    memory. For 1, 2 and 4 workers of one host see test_resume.py.
    """
    sizes = ("data.shards=6", "train.batch=18", "train.max_steps=4", "train.evaluate_every=2 steps")
    config = tiny_config(tiny_root, *sizes, "train.log_every=3 steps")
    whole, parted = (make_run(tmp_path / name, config) for name in ("whole", "parted"))
    assert run_workers(train_run, 3, whole.path, nodes=3) == ["finished"] * 3
    assert run_workers(train_run, 3, parted.path, 1, nodes=3) == ["stopped"] * 3
    assert run_workers(train_run, 3, parted.path, nodes=3) == ["finished"] * 3
    assert read_records(parted) == read_records(whole)
    assert newest_weights(parted) == newest_weights(whole)


def warm_up_and_compare(comms: Comms, folder: Path) -> list[str]:
    """Return the names of the tensors that the warm-up passes have changed."""
    loop = make_loop(RunDir(folder), comms)
    before = {name: tensor.clone() for name, tensor in loop.engine.network.state_dict().items()}
    rng_state = torch.get_rng_state()
    loop.resume()
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert all(parameter.grad is None for parameter in loop.engine.network.parameters())
    assert loop.means.compute() == {}
    return [name for name, tensor in loop.engine.network.state_dict().items() if not torch.equal(tensor, before[name])]


def test_the_warm_up_passes_change_no_state(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL))
    assert run_workers(warm_up_and_compare, 2, run.path) == [[], []]


def initial_weights(comms: Comms, folder: Path) -> str | bytes:
    """Return the weights with which this worker starts, or the error message if it does not start."""
    loop = make_loop(RunDir(folder), comms)
    try:
        loop.resume()
    except CheckError as error:
        return str(error)
    return b"".join(value.numpy().tobytes() for value in loop.engine.state().model.values())


@pytest.mark.parametrize("channels_last", ["false", "true"])
def test_all_workers_start_with_the_weights_that_rank_0_finds(
    channels_last: str, tiny_root: Path, tmp_path: Path
) -> None:
    """For rank 1 the path has no weights, as on a node with another file system. The memory format does not matter."""
    other = make_run(tmp_path / "other", tiny_config(tiny_root, *SMALL, "train.max_steps=1"))
    run_workers(train_run, 1, other.path)
    runs = []
    for origin in (other.path, tmp_path / "nowhere"):
        config = tiny_config(tiny_root, *SMALL, f"train.init_from={origin}", f"train.channels_last={channels_last}")
        runs.append(make_run(tmp_path / f"from-{origin.name}", config).path)
    expected = run_workers(initial_weights, 1, runs[0])[0]
    assert isinstance(expected, bytes)
    assert run_workers(initial_weights_by_rank, 2, runs) == [expected] * 2
    one, two = run_workers(initial_weights_by_rank, 2, runs[::-1])
    assert one == two
    assert "nowhere does not exist" in str(one)


def initial_weights_by_rank(comms: Comms, runs: list[Path]) -> str | bytes:
    return initial_weights(comms, runs[comms.rank])


def load_newest(comms: Comms, folder: Path) -> str:
    try:
        make_loop(RunDir(folder), comms).resume()
    except CheckpointError as error:
        return str(error)
    return "loaded"


def test_all_workers_fail_when_no_checkpoint_can_be_used(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root))
    (run.checkpoints / "step-00000001").mkdir()
    for message in run_workers(load_newest, 2, run.path):
        assert "all checkpoints are damaged" in message


def train_until_error(comms: Comms, folder: Path) -> str:
    try:
        return train_run(comms, folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_a_loss_that_is_not_finite_ends_every_worker_with_the_same_error(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "optim.lr=1e30"))
    one, other = run_workers(train_until_error, 2, run.path)
    assert one == other
    assert one.startswith("NonFiniteLossError: the loss is not finite in step")


def bytes_in_memory(comms: Comms, folder: Path) -> int:
    loop = make_loop(RunDir(folder), comms)
    shards = loop.batches.shards
    assert isinstance(shards, ShardsInMemory)
    return shards.images.nbytes + shards.labels.nbytes + shards.ids.nbytes


def test_a_worker_of_four_holds_a_quarter_of_the_set(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root))
    whole = 256 * 3 * 32 * 32
    assert all(size < 1.1 * whole / 4 for size in run_workers(bytes_in_memory, 4, run.path))


def test_a_run_with_the_presets_precision_and_layout_resumes_bit_for_bit_too(tiny_root: Path, tmp_path: Path) -> None:
    """Two workers in bf16 and channels_last, with micro-batches and gradient clipping."""
    sizes = ("data.shards=16", "train.batch=32", "train.micro_batch=16", "train.max_steps=3")
    formats = ("train.precision=bf16", "train.channels_last=true", "optim.clip_norm=1")
    config = tiny_config(tiny_root, *sizes, *formats)
    whole, parted = (make_run(tmp_path / name, config) for name in ("whole", "parted"))
    run_workers(train_run, 2, whole.path)
    assert run_workers(train_run, 2, parted.path, 2) == ["stopped"] * 2
    run_workers(train_run, 2, parted.path)
    assert read_records(parted) == read_records(whole)
    assert newest_weights(parted) == newest_weights(whole)


def buffers_in_evaluation(comms: Comms, folder: Path) -> tuple[bytes, bytes]:
    """Return a running mean of this worker after a training step, and in the evaluation."""
    loop = make_loop(RunDir(folder), comms)
    loop.resume()
    loop._train_one_step()
    (buffer, *_) = (value for name, value in loop.engine.network.named_buffers() if name.endswith("running_mean"))
    before = buffer.numpy().tobytes()
    loop._evaluate()
    return before, buffer.numpy().tobytes()


def test_workers_evaluate_with_one_set_of_batch_statistics(tiny_root: Path, tmp_path: Path) -> None:
    """Without synchronised BN, these are the statistics of rank 0, which are also saved."""
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "model.sync_bn=false"))
    (one, evaluated_one), (other, evaluated_other) = run_workers(buffers_in_evaluation, 2, run.path)
    assert one != other
    assert evaluated_one == evaluated_other == one
