"""The figures of the accuracy benchmark, compared with values computed by hand."""

import json
from pathlib import Path

import pytest

from launcher.agent.available_resources import Resources
from launcher.agent.visible_gpus import Gpu, GpuDriver
from launcher.resources.config_cost import Costs
from tests.benchmarks import accuracy_runs
from tests.benchmarks.accuracy_runs import Comparison, concurrent_runs, length_overrides, runs_per_gpu
from tests.benchmarks.accuracy_table import RunResult, format_rate, paired_difference, spread, training_totals

GIB = 1 << 30


def result(top1: float) -> RunResult:
    return RunResult({"deepest_top1": top1}, seconds=1.0, images=1, concurrent=0)


def test_only_seeds_that_both_methods_have_finished_are_compared() -> None:
    method_results, plain = {0: result(0.5), 2: result(0.8)}, {1: result(0.1), 2: result(0.7)}
    assert paired_difference(method_results, plain) == "+10.00"
    assert paired_difference(method_results, {}) == "-"


@pytest.mark.parametrize(
    ("method_beside", "plain_beside", "expected"),
    [(0, 0, "300 (1.50x)"), (2, 0, "300 (up to 3 at a time)"), (0, 1, "300"), (None, 0, "300")],
)
def test_speeds_are_compared_only_for_runs_that_did_not_share_the_machine(
    method_beside: int | None, plain_beside: int | None, expected: str
) -> None:
    one, other = (
        RunResult({}, 10.0, images, beside) for images, beside in ((3000, method_beside), (2000, plain_beside))
    )
    assert format_rate({0: one}, {0: other}) == expected


def test_spread_is_in_percent() -> None:
    assert (spread([0.5]), spread([0.5, 0.52])) == ("50.00", "51.00 ± 1.41")


def test_training_time_excludes_pauses_and_evaluations(tmp_path: Path) -> None:
    """10 steps of 8 images at 40 images/s, an evaluation, a pause of a day, and 5 steps at 20 images/s: 2 s and 2 s."""
    records = [
        {"split": "train", "step": 10, "time": 5, "images_per_s": 40.0},
        {"split": "test", "step": 10, "time": 9},
        {"split": "train", "step": 15, "time": 90_000, "images_per_s": 20.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert training_totals(tmp_path / "metrics.jsonl", batch=8) == (4.0, 120)


@pytest.mark.parametrize(
    ("epochs", "points"), [(200, [66, 133, 190]), (250, [82, 166, 238]), (6, [2, 4]), (2, [1]), (1, [])]
)
def test_milestones_are_scaled_to_the_epochs(epochs: int, points: list[int]) -> None:
    assert length_overrides(epochs) == [f"train.epochs={epochs}", f"optim.milestones={points}"]


@pytest.mark.parametrize(
    ("free", "needed", "cores", "expected"),
    [(80 * GIB, 2 * GIB, 16, 8), (80 * GIB, 20 * GIB, 16, 2), (80 * GIB, 2 * GIB, 4, 2), (GIB, 8 * GIB, 1, 1)],
)
def test_memory_and_cores_limit_the_number_of_runs_on_a_gpu(free: int, needed: int, cores: int, expected: int) -> None:
    assert runs_per_gpu(free, needed, cores) == expected


def test_runs_are_packed_by_the_largest_memory_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two GPUs with 10 and 8 GiB free, and 3 GiB for fmfsd: two runs on each, which 8 cores can feed."""
    runs = Comparison("resnet8", "cifar10", ("plain", "fmfsd"), 3, 6, tmp_path, tmp_path).runs()
    needed = {"plain": GIB, "fmfsd": 2 * GIB}
    monkeypatch.setattr(
        accuracy_runs, "query_driver", lambda: GpuDriver(gpus=(Gpu("a", "A", 0, 10 * GIB), Gpu("b", "B", 0, 8 * GIB)))
    )
    monkeypatch.setattr(Resources, "detect", lambda environment: Resources(cores=8, gpus=("0", "1")))
    monkeypatch.setattr(
        accuracy_runs, "probe_costs", lambda config, *_, **__: Costs(memory={"total": needed[config.method]})
    )
    assert concurrent_runs(runs, {}) == 4
    monkeypatch.setattr(Resources, "detect", lambda environment: Resources(cores=8))
    assert concurrent_runs(runs, {}) == 1
