"""The summary of the workers' profiles, and how it is printed."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from fmfsd.config import load_config
from fmfsd.run.profile_record import PARTS, Operator, StepBreakdown, WorkerProfile
from fmfsd.run.run_dir import RunDir
from launcher.diagnostics.profile import screen
from launcher.diagnostics.profile.summary import Spread, Summary

CONFIG = load_config("cifar100-resnet18", ["train.batch=128"])
RUN = RunDir(Path("/runs/one"))
PARTS_S = {part: 0.01 * (number + 1) for number, part in enumerate(PARTS)}
OPERATOR = Operator("autograd::engine::evaluate_function: ConvolutionBackward0", "backward/trunk", 0.3, 20)
ONE = WorkerProfile(
    rank=0,
    steps_s=(0.5, 0.4, 0.7),
    data_wait=0.02,
    peak_memory_bytes=3 << 30,
    matrix_flops_per_s=1e12,
    division=StepBreakdown(sum(PARTS_S.values()), PARTS_S, 0.2, (OPERATOR,)),
)
OTHER = replace(ONE, rank=1, steps_s=(0.6, 0.4, 0.4), data_wait=0.04, matrix_flops_per_s=3e12)
MACS = 500_000_000


def test_the_share_of_the_limit_is_the_flops_of_a_step_over_the_peak_flops_in_that_time() -> None:
    """6 x 128 images x 0.5 G multiply-adds in half a second, at a peak of 1 TFLOP/s."""
    compute = Summary.of([ONE], CONFIG, "cpu", MACS).compute
    assert compute is not None
    assert compute.flops_per_s == pytest.approx(6 * 128 * 0.5e9 / 0.5)
    assert compute.share == pytest.approx(0.768)


def test_step_time_is_that_of_the_slowest_worker_and_the_limit_the_sum_of_all() -> None:
    summary = Summary.of([ONE, OTHER], CONFIG, "cpu", MACS)
    assert (summary.step_s, summary.worst_step_s, summary.data_wait) == (0.6, 0.7, 0.04)
    assert summary.compute is not None
    assert summary.compute.matrix_flops_per_s == 4e12


def test_the_spread_over_workers_is_given_for_each_part() -> None:
    slow = replace(ONE, division=replace(ONE.division, parts={**PARTS_S, "loss": 1.0}))
    summary = Summary.of([ONE, slow, ONE], CONFIG, "cpu", MACS)
    assert summary.parts["loss"] == Spread(0.05, 0.05, 1.0)


def render(summary: Summary) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file, console.capture() as captured:
        for part in screen.render(summary, RUN, plain=True):
            console.print(part)
    return captured.get()


def test_the_summary_fits_on_one_screen() -> None:
    text = render(Summary.of([ONE], CONFIG, "cpu", MACS))
    assert len(text.splitlines()) <= 30
    for part in (
        "step 500.0 ms (median of 3; worst 700.0), 256 images/s, data wait 2.0%, peak memory 3.0 GiB",
        "compute: 0.768 TFLOP/s, 76.8% of the 1 TFLOP/s at which this worker multiplies matrices (bf16)",
        "/runs/one/profile/rank-0.trace.json.gz",
        "\nConvolutionBackward0 ",
        *PARTS,
    ):
        assert part in text


def test_the_cost_of_an_image_may_be_unknown() -> None:
    summary = Summary.of([ONE], CONFIG, "cpu", 0)
    assert "compute: unknown" in render(summary)
    assert summary.to_json(RUN)["compute"] is None


def test_the_json_has_numbers_and_the_paths_of_the_traces() -> None:
    content = json.loads(json.dumps(Summary.of([ONE, OTHER], CONFIG, "cpu", MACS).to_json(RUN)))
    assert content["traces"] == [f"/runs/one/profile/rank-{rank}.trace.json.gz" for rank in (0, 1)]
    assert content["parts"]["input"] == {"least": 0.01, "median": 0.01, "most": 0.01}
    assert (content["step_s"], content["images_per_s"], content["workers"]) == (0.6, 128 / 0.6, 2)
    assert content["compute"]["share"] == pytest.approx(0.16)
    assert content["operators"] == [asdict(OPERATOR)]
