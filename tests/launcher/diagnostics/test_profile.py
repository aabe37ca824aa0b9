"""What the profiles of workers come to, and how it is shown."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from fmfsd.config import load_config
from fmfsd.errors import ConfigError
from fmfsd.run.profile_record import PARTS, Division, Operator, WorkerProfile
from fmfsd.run.run_dir import RunDir
from launcher.config.launch_config import ProfileOptions
from launcher.diagnostics.profile.screen import shown
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
    division=Division(sum(PARTS_S.values()), PARTS_S, 0.2, (OPERATOR,)),
)
OTHER = replace(ONE, rank=1, steps_s=(0.6, 0.4, 0.4), data_wait=0.04, matrix_flops_per_s=3e12)
MACS = 500_000_000


def test_the_share_of_the_limit_is_the_arithmetic_of_a_step_over_what_could_be_done_meanwhile() -> None:
    """6 x 128 images x 0.5 G multiply-adds in half a second, of 1 TFLOP/s."""
    compute = Summary.of([ONE], CONFIG, "cpu", MACS).compute
    assert compute is not None
    assert compute.flops_per_s == pytest.approx(6 * 128 * 0.5e9 / 0.5)
    assert compute.share == pytest.approx(0.768)


def test_of_several_workers_a_step_is_that_of_the_slowest_and_the_limit_that_of_all() -> None:
    summary = Summary.of([ONE, OTHER], CONFIG, "cpu", MACS)
    assert (summary.step_s, summary.worst_step_s, summary.data_wait) == (0.6, 0.7, 0.04)
    assert summary.compute is not None
    assert summary.compute.matrix_flops_per_s == 4e12


def test_the_spread_over_workers_is_that_of_each_part() -> None:
    slow = replace(ONE, division=replace(ONE.division, parts={**PARTS_S, "loss": 1.0}))
    summary = Summary.of([ONE, slow, ONE], CONFIG, "cpu", MACS)
    assert summary.parts["loss"] == Spread(0.05, 0.05, 1.0)


def text(summary: Summary) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file, console.capture() as captured:
        for part in shown(summary, RUN, plain=True):
            console.print(part)
    return captured.get()


def test_one_screen_has_it_all() -> None:
    found = text(Summary.of([ONE], CONFIG, "cpu", MACS))
    assert len(found.splitlines()) <= 30
    for part in (
        "step 500.0 ms (median of 3; worst 700.0), 256 images/s, data wait 2.0%, peak memory 3.0 GiB",
        "compute: 0.768 TFLOP/s, 76.8% of the 1 TFLOP/s that this worker multiplies matrices with (bf16)",
        "/runs/one/profile/rank-0.trace.json.gz",
        "\nConvolutionBackward0 ",
        *PARTS,
    ):
        assert part in found


def test_what_an_image_takes_may_be_unknown() -> None:
    summary = Summary.of([ONE], CONFIG, "cpu", 0)
    assert "compute: not known" in text(summary)
    assert summary.to_json(RUN)["compute"] is None


def test_as_an_object_it_has_numbers_and_the_places_of_the_traces() -> None:
    content = json.loads(json.dumps(Summary.of([ONE, OTHER], CONFIG, "cpu", MACS).to_json(RUN)))
    assert content["traces"] == [f"/runs/one/profile/rank-{rank}.trace.json.gz" for rank in (0, 1)]
    assert content["parts"]["input"] == {"least": 0.01, "median": 0.01, "most": 0.01}
    assert (content["step_s"], content["images_per_s"], content["workers"]) == (0.6, 128 / 0.6, 2)
    assert content["compute"]["share"] == pytest.approx(0.16)
    assert content["operators"] == [asdict(OPERATOR)]


def test_a_profile_stands_alone() -> None:
    assert ProfileOptions.parse(asked=False, steps=3, beside={"--drill": "all"}) is None
    assert ProfileOptions.parse(asked=True, steps=3, beside={"--drill": None}) == ProfileOptions(3)
    with pytest.raises(ConfigError, match="--profile, --drill: each starts its own runs"):
        ProfileOptions.parse(asked=True, steps=3, beside={"--drill": "all"})
