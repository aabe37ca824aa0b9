"""Invariance for timm's models: the same result on one worker and on two."""

from pathlib import Path

from tests.distributed.test_invariance import InvarianceCase, largest_differences, run_steps

CASES = [
    InvarianceCase(("model.backbone=timm/test_byobnet", "method=fmfsd")),
    InvarianceCase(("model.backbone=timm/test_efficientnet", "method=fmfsd")),
    InvarianceCase(("model.backbone=timm/test_vit", "method=fmfsd_side")),
]


def test_two_workers_in_fp64_train_like_one(tiny_root: Path, tmp_path: Path) -> None:
    alone, two = (run_steps(tmp_path, tiny_root, size, *CASES) for size in (1, 2))
    for one, other in zip(alone, two, strict=True):
        assert max(largest_differences(one, other).values()) < 1e-9
