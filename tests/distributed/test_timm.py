"""The promise for models of timm: the same result on one worker and on two."""

from pathlib import Path

import pytest

from tests.distributed.test_invariance import FP64, assert_same, outcome


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        ("timm/test_byobnet", "fmfsd"),
        ("timm/test_efficientnet", "fmfsd_side"),
    ],
)
def test_two_workers_in_fp64_train_like_one(backbone: str, method: str, tiny_root: Path, tmp_path: Path) -> None:
    changes = (*FP64, f"model.backbone={backbone}", f"method={method}", "train.max_steps=3")
    alone, two = (outcome(tmp_path, tiny_root, size, changes) for size in (1, 2))
    assert_same(alone, two, tolerance=1e-9)
