"""Profiling of training steps: the ranges around a worker's parts, and how profiler events are attributed to them."""

import gzip
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEvent, Kernel
from torch.profiler import ProfilerActivity, profile, record_function

from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.profiling import attribution
from fmfsd.profiling.attribution import divide_step_time
from fmfsd.profiling.intervals import length, overlap, subtract, union
from fmfsd.profiling.profiler import ProfileWriter
from fmfsd.profiling.ranges import ROLES, STEP, add_module_ranges
from fmfsd.run.profile_record import COMMUNICATION, OTHER, PARTS, SETTLING_STEPS, WorkerProfile, count_profile_steps
from fmfsd.run.run_dir import RunDir
from fmfsd.training.loop import Loop
from tests.helpers.networks import make_network
from tests.helpers.runs import make_loop, make_run, tiny_config

STEPS = 2
CPU = torch.device("cpu")


def profiled_loop(root: Path, folder: Path) -> Iterator[tuple[RunDir, Loop]]:
    """Yield a run and its loop before it is profiled, and again afterwards."""
    changes = ("data.shards=16", "train.batch=16", f"train.max_steps={count_profile_steps(STEPS)}")
    run = make_run(folder, tiny_config(root, *changes))
    with ProfileWriter(run, 0, CPU, STEPS) as written_profile:
        loop = written_profile.wrap_loop(make_loop(run, written_profile.wrap_comms(SingleWorkerComms())))
        yield run, loop
        with closing(loop):
            loop.resume()
            loop.run()
    yield run, loop


@pytest.fixture(scope="module")
def run_and_loop(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Loop]:
    *_, profiled = profiled_loop(tiny_root, tmp_path_factory.mktemp("profiled"))
    return profiled


@pytest.fixture(scope="module")
def worker_profile(run_and_loop: tuple[RunDir, Loop]) -> WorkerProfile:
    return WorkerProfile.read(run_and_loop[0].profile_result(0))


def test_the_parts_of_a_step_add_up_to_it(worker_profile: WorkerProfile) -> None:
    assert tuple(worker_profile.division.parts) == PARTS
    assert sum(worker_profile.division.parts.values()) == pytest.approx(worker_profile.division.step_s, rel=1e-6)
    assert {part for part, seconds in worker_profile.division.parts.items() if seconds <= 0} == set()
    assert worker_profile.division.parts[OTHER] < 0.2 * worker_profile.division.step_s


def test_steps_are_timed_before_the_profiler_starts(worker_profile: WorkerProfile) -> None:
    assert len(worker_profile.steps_s) == STEPS
    assert all(0 < seconds < 60 for seconds in worker_profile.steps_s)
    assert 0 < worker_profile.data_wait < 1
    assert worker_profile.peak_memory_bytes > 1 << 20
    assert worker_profile.matrix_flops_per_s > 1e8


def test_the_trace_has_every_range(run_and_loop: tuple[RunDir, Loop]) -> None:
    run, _ = run_and_loop
    content = json.loads(gzip.decompress(run.profile_trace(0).read_bytes()))
    names = [event["name"] for event in content["traceEvents"]]
    ranges = {STEP, "input", "loss", "backward", "optimizer", COMMUNICATION, *(f"forward/{role}" for role in ROLES)}
    assert names.count(STEP) == STEPS
    assert ranges <= set(names)
    assert {path.name for path in run.profile.iterdir()} == {"rank-0.json", "rank-0.trace.json.gz"}


def test_profiling_leaves_no_hooks_and_skips_evaluations(run_and_loop: tuple[RunDir, Loop]) -> None:
    run, loop = run_and_loop
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in loop.engine.network.modules())
    assert {json.loads(line)["split"] for line in run.metrics.read_text().splitlines()} == {"train"}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo reads it
def test_a_compiled_step_is_timed_compiled_and_profiled_uncompiled(tiny_root: Path, tmp_path: Path) -> None:
    calls = list[int]()

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        def compiled(*args: Any) -> Any:
            calls.append(loop.position.step)
            return graph.forward(*args)

        return compiled

    profiling = profiled_loop(tiny_root, tmp_path / "run")
    _, loop = next(profiling)
    loop.engine.network.get_submodule("deepest_head").compile(backend=backend)
    run, _ = next(profiling)
    torch.compiler.reset()
    assert calls == list(range(SETTLING_STEPS + STEPS))
    assert run.profile_result(0).exists()


@pytest.mark.parametrize("change", ["model.fusion=trunk", "model.fusion=side", "model.fusion=both", "method=byot"])
def test_every_child_of_a_network_has_a_role(change: str) -> None:
    network = make_network("model.backbone=resnet8", change)
    assert {name for name, _ in network.named_children()} <= {name for names in ROLES.values() for name in names}


def test_backward_operations_are_attributed_to_the_part_of_their_forward_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checked by counting the convolutions of the trunk and of the branches."""
    monkeypatch.setattr(attribution, "SLOWEST", 1000)
    network = make_network("model.backbone=resnet8")
    with profile(activities=[ProfilerActivity.CPU]) as profiler, add_module_ranges(network), record_function(STEP):
        outputs = network(torch.randn(2, 3, 32, 32))
        with record_function("loss"):
            loss = torch.stack([logits.logsumexp(dim=1).sum() for logits in outputs.logits]).sum()
        with record_function("backward"):
            loss.backward()
    calls = {(each.name, each.part): each.calls for each in divide_step_time(profiler.events(), on_gpu=False).operators}
    trunk = sum(isinstance(each, torch.nn.Conv2d) for each in network.backbone.modules())
    total = sum(isinstance(each, torch.nn.Conv2d) for each in network.modules())
    assert calls["aten::convolution_backward", "backward/trunk"] == trunk
    assert calls["aten::convolution_backward", "backward/branches"] == total - trunk
    assert ("LogsumexpBackward0", "backward/loss") in calls
    assert ("MaskFunctionBackward", "backward/fusion") in calls
    assert not any(name.startswith("aten::convolution_backward") and part.endswith(OTHER) for name, part in calls)


def event(name: str, start: float, end: float, *parents: FunctionEvent, **more: Any) -> FunctionEvent:
    """Return an event like those of the profiler; times in microseconds."""
    new_event = FunctionEvent(0, name, more.pop("thread", 1), start, end, **more)
    for parent in parents:
        parent.append_cpu_child(new_event)
        new_event.set_cpu_parent(parent)
    return new_event


def test_waiting_for_communication_on_another_thread_counts_as_communication() -> None:
    """Only if nothing is computed at that time: 10 of 30 us of communication overlap with an operator."""
    step = event(STEP, 0, 100)
    backward = event("backward", 20, 100, step)
    operator = event("aten::mul", 20, 60, backward)
    buckets = event("gloo:all_reduce", 50, 80, thread=2, is_async=True)
    result = divide_step_time([step, backward, operator, buckets], on_gpu=False)
    assert result.parts["backward/other"] == pytest.approx(60e-6)
    assert result.parts[COMMUNICATION] == pytest.approx(20e-6)
    assert result.communication_s == pytest.approx(30e-6)
    assert sum(result.parts.values()) == pytest.approx(result.step_s) == pytest.approx(100e-6)


def test_on_a_gpu_a_part_has_the_time_of_its_kernels() -> None:
    """The time of the host does not count; backward kernels are launched by another thread."""
    gpu: dict[str, Any] = {"device_type": DeviceType.CUDA, "use_device": "cuda", "thread": 7}
    step = event(STEP, 0, 100)
    trunk = event("forward/trunk", 0, 5, step)
    forward = event("aten::conv2d", 1, 2, trunk, sequence_nr=3)
    back = event(
        "autograd::engine::evaluate_function: ConvolutionBackward0", 6, 9, thread=2, sequence_nr=3, fwd_thread=1
    )
    backward = event("aten::convolution_backward", 7, 8, back, thread=2)
    forward.kernels, backward.kernels = [Kernel("conv", 0, 20)], [Kernel("conv_back", 0, 30)]
    trunk.kernels = [Kernel("forward/trunk", 0, 20)]  # the range as recorded on the GPU
    kernels = [
        event("conv", 10, 30, **gpu),
        event("conv_back", 40, 70, **gpu),
        event("forward/trunk", 10, 30, is_user_annotation=True, **gpu),
        event("ncclDevKernel_AllReduce_Sum_f32", 60, 85, **gpu),
    ]
    result = divide_step_time([step, trunk, forward, back, backward, *kernels], on_gpu=True)
    assert {part: round(1e6 * seconds) for part, seconds in result.parts.items() if seconds} == {
        "forward/trunk": 20,
        "backward/trunk": 30,
        COMMUNICATION: 15,
        OTHER: 35,
    }
    assert [result.step_s, result.communication_s] == pytest.approx([100e-6, 25e-6])
    assert (result.operators[0].name, result.operators[0].part) == ("aten::convolution_backward", "backward/trunk")


def test_overlapping_intervals_are_counted_once() -> None:
    intervals = union([(5, 7), (0, 2), (1, 3), (7, 8)])
    assert intervals == [(0, 3), (5, 8)]
    assert (length(intervals), overlap(intervals, [(2, 6), (7, 20)])) == (6, 3)
    assert subtract((0, 10), [(2, 3), (1, 4), (8, 10)]) == [(0, 1), (4, 8)]
