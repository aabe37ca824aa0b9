"""The memory that a probe estimates for several workers is what each of them uses."""

import pytest

from fmfsd.config import load_config
from fmfsd.cost.measure.estimate import estimate_cost
from tests.helpers.costs import measure_saved_bytes
from tests.helpers.workers import run_workers


@pytest.mark.parametrize("change", ["train.precision=fp32", "train.precision=bf16", "model.sync_bn=false"])
def test_activations_are_the_bytes_that_each_of_two_workers_saves(change: str) -> None:
    """In bf16 to 2e-4: torch's meta tensors have batch statistics in bf16, real tensors in fp32."""
    config = load_config("cifar100-resnet18", ["model.backbone=resnet8", "train.batch=64", change])
    expected = run_workers(measure_saved_bytes, 2, config)
    assert expected[0] == expected[1]
    assert estimate_cost(config, workers=2).memory.activations == pytest.approx(expected[0], rel=2e-4)
