"""The main job on real CIFAR-100: official files, shards, two node agents, each worker with half of the data."""

from pathlib import Path

from fmfsd.run.run_dir import RunDir
from tests.helpers.launches import overrides
from tests.helpers.processes import run_command
from tests.helpers.runs import read_records

SMALL = overrides("model.backbone=resnet8", "train.max_steps=2", "train.log_every=1 step", "train.evaluate_every=1000")


def test_the_default_preset_with_a_small_backbone_trains_on_real_cifar_100(cifar_dir: Path, tmp_path: Path) -> None:
    """Train two steps and evaluate the whole test set, with a small backbone to save time.

    The launch prepares the data set from the files in the data root; `fmfsd data prepare` has the same result.
    """
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-100-python").symlink_to(cifar_dir / "cifar-100-python")
    answer = run_command("fmfsd-launch", "--nodes", "2", "--gpus", "1", *SMALL, "--run-dir", "run", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    lines = read_records(RunDir(tmp_path / "run"))
    assert [(line["step"], line["split"]) for line in lines] == [(1, "train"), (2, "train"), (2, "test")]
    assert {name for name in lines[-1] if name.endswith("_top1")} == {
        "branch1_top1",
        "fused_top1",
        "deepest_top1",
        "ensemble_top1",
    }
    accuracies = [value * 10_000 for name, value in lines[-1].items() if name.endswith("_top1")]
    assert all(abs(value - round(value)) < 1e-6 for value in accuracies), "each of the 10,000 samples counts once"
    prepared = run_command(
        "fmfsd", "data", "prepare", "cifar100", "--source", str(cifar_dir), "--out", "sets", cwd=tmp_path
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "warning" not in prepared.stderr.lower()
    index = (tmp_path / "sets" / "cifar100" / "index.json").read_text()
    assert (tmp_path / "data" / "cifar100" / "index.json").read_text() == index
