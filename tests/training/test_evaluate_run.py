"""`fmfsd evaluate`: what it says is what the run said, early exits included; what it can't do it says clearly."""

import errno
import json
import os
import shutil
import subprocess
import sys
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from fmfsd.cli import app
from fmfsd.config import load_config
from fmfsd.data.loading.batches import EvaluationBatches
from fmfsd.data.loading.shards_in_memory import load_own_shards
from fmfsd.data.shards.index import SetIndex, read_index, set_folder
from fmfsd.distributed.collectives import Comms, SoloComms
from fmfsd.engine.precision import Form
from fmfsd.errors import CheckError, ConfigError, NoCheckpointError
from fmfsd.evaluation import early_exits
from fmfsd.evaluation.evaluate_run import Questions, assess
from fmfsd.evaluation.heads import evaluation_batches
from fmfsd.evaluation.output import show_and_write
from fmfsd.evaluation.trained_run import newest_checkpoint
from fmfsd.model.build import build_network
from fmfsd.model.network import Outputs
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import Position
from fmfsd.system.atomic_files import write_json
from tests.helpers.processes import command
from tests.helpers.runs import make_loop, make_run, records, tiny_config, train_run
from tests.helpers.workers import run_workers

CPU = torch.device("cpu")
SHORT = ("train.max_steps=3", "checkpoint.every_steps=1", "train.evaluate_batch=24", "optim.milestones=[]")


def trained(root: Path, folder: Path, *changes: str) -> RunDir:
    run = make_run(folder, tiny_config(root, *SHORT, *changes))
    train_run(SoloComms(), run.path)
    return run


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained(tiny_root, tmp_path_factory.mktemp("assessed") / "run")


def last_record(run: RunDir, split: str) -> dict[str, float]:
    line = next(line for line in reversed(records(run)) if line["split"] == split)
    return {name: value for name, value in line.items() if name not in ("step", "epoch", "split")}


def test_the_heads_are_those_of_the_runs_last_record_to_the_last_digit(run: RunDir) -> None:
    found = assess(run, Questions(), CPU)
    show_and_write(found, run=run, out=None, as_json=False)
    assert found.metrics == last_record(run, "test")
    assert (found.step, found.samples, found.checkpoint) == (3, 64, "step-00000003")
    kept, of_exits = (json.loads(path.read_text()) for path in (run.evaluation("test"), run.early_exits("test")))
    assert (kept["step"], kept["metrics"]) == (3, found.metrics)
    assert of_exits == json.loads(json.dumps({"step": 3, **found.as_json()["early_exits"]}))


def test_early_exits_need_not_be_measured(run: RunDir) -> None:
    found = assess(run, Questions(early_exits=False), CPU)
    assert (found.metrics, found.early_exits) == (last_record(run, "test"), None)
    with pytest.raises(ConfigError, match="there is no early exit to measure"):
        assess(run, Questions(thresholds=("0.5",), early_exits=False), CPU)


@pytest.mark.parametrize(
    "changes",
    [
        ("train.precision=bf16", "train.channels_last=true"),
        ("method=byot", "data.shards=16", "data.valid=30"),
        ("train.ema=0.5",),
    ],
)
def test_so_they_are_in_other_forms_on_other_splits_and_by_averaged_weights(
    changes: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    run = trained(tiny_root, tmp_path / "run", *changes)
    for split in {line["split"] for line in records(run)} - {"train"}:
        assert assess(run, Questions(split), CPU).metrics == last_record(run, split)


def whole_split(run: RunDir) -> tuple[Outputs, Tensor]:
    """The whole network on the test split at once, and the labels."""
    loop = make_loop(run, SoloComms())
    loop.engine.load(newest_checkpoint(run).engine)
    batches = loop.evaluations["test"]
    images, labels = (torch.cat(parts) for parts in zip(*map(batches.at, range(len(batches))), strict=True))
    return loop.engine.predict(images), labels


def test_early_exits_are_what_the_whole_network_would_have_let_go(run: RunDir) -> None:
    outputs, labels = whole_split(run)
    sure = outputs.logits[0].softmax(dim=1).amax(dim=1)
    threshold = sure.quantile(0.7).item()
    early_exits = assess(run, Questions(thresholds=(str(threshold), "1")), CPU).early_exits
    assert early_exits is not None
    found = early_exits.table
    half, none = found.settings
    leaves = sure >= threshold
    predictions = torch.where(leaves, outputs.logits[0].argmax(dim=1), outputs.logits[-1].argmax(dim=1))
    assert half.top1 == (predictions == labels).double().mean().item()
    share = leaves.double().mean().item()
    assert 0 < share < 1
    assert half.leaving == {"branch1": share, "deepest": 1 - share}
    early, late = found.if_all_leave["branch1"].macs, found.if_all_leave["deepest"].macs
    assert half.cost.macs == pytest.approx(share * early + (1 - share) * late, rel=1e-12)
    assert early < found.deepest_alone.macs < late
    assert (none.top1, none.cost.macs) == (last_record(run, "test")["deepest_top1"], late)
    costs = [*(setting.cost for setting in found.settings), *found.if_all_leave.values(), found.deepest_alone]
    assert all(cost.seconds > 0 for cost in costs)


def test_a_network_without_early_heads_has_no_early_exits(tiny_root: Path, tmp_path: Path) -> None:
    run = trained(tiny_root, tmp_path / "run", "method=plain")
    assert assess(run, Questions(), CPU).early_exits is None
    with pytest.raises(ConfigError, match="there is no early exit to measure"):
        assess(run, Questions(thresholds=("0.5",)), CPU)


WRONG = {
    "0.9,0.8": "2 for 1 early heads (branch1): give one per head, or one for all",
    **dict.fromkeys(
        ("", "0", "-0.1", "1.01", "nan", "inf", "sure", "0.9,", "0.9;0.8"),
        "expected probabilities above 0 and up to 1, separated by commas, as in 0.9,0.95",
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_thresholds_that_do_not_fit_are_refused(text: str, run: RunDir) -> None:
    with pytest.raises(ConfigError) as caught:
        assess(run, Questions(thresholds=("0.5", text)), CPU)
    assert str(caught.value) == f"--exit-thresholds {text}: {WRONG[text]}"


def test_a_split_that_is_not_there_is_named_with_those_that_are(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="--split valid: .*/cifar10 has no such split: choose one of train, test"):
        assess(run, Questions("valid"), CPU)


def test_a_run_without_checkpoints_says_what_to_do(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root))
    with pytest.raises(CheckError, match="has no checkpoint yet: train the run first"):
        assess(run, Questions(), CPU)


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(run: RunDir, tmp_path: Path) -> None:
    copy = RunDir(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    names = sorted(path.name for path in copy.checkpoints.iterdir())
    assert names == ["step-00000002", "step-00000003"]
    (copy.checkpoints / names[1] / "model.safetensors").write_bytes(b"")
    assert newest_checkpoint(copy).position == Position(2)
    (copy.checkpoints / names[0] / "model.safetensors").write_bytes(b"")
    with pytest.raises(NoCheckpointError, match="every checkpoint is damaged"):
        newest_checkpoint(copy)
    assert sorted(path.name for path in copy.checkpoints.iterdir()) == names


def evaluated(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--device", "cpu"])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_shows_tables_or_json(run: RunDir) -> None:
    code, shown, _ = evaluated(str(run.path), "--exit-thresholds", "0.5")
    assert code == 0
    assert "deepest_top1" in shown
    assert "early exits" in shown
    code, shown, _ = evaluated(str(run.path), "--split", "train", "--json")
    assert (code, json.loads(shown)["samples"]) == (0, 256)
    assert json.loads(shown)["metrics"] == json.loads(run.evaluation("train").read_text())["metrics"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--split", "dev"), 2, "--split dev"),
        (("--exit-thresholds", "2"), 2, "--exit-thresholds 2: expected probabilities"),
    ],
)
def test_the_command_ends_with_a_usage_error(arguments: tuple[str, ...], code: int, message: str, run: RunDir) -> None:
    found, shown, errors = evaluated(str(run.path), *arguments)
    assert (found, shown) == (code, "")
    assert message in errors
    assert "Traceback" not in errors


def test_a_set_that_the_run_was_not_trained_on_is_refused(run: RunDir, tmp_path: Path) -> None:
    copied = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    write_json(copied.manifest, {"data": "0" * 64, "started": 0})
    with pytest.raises(CheckError, match="is not the data set that .* was trained on"):
        assess(copied, Questions(), CPU)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    code, _, errors = evaluated(str(tmp_path / "nowhere"))
    assert code == 2
    assert "config.yaml" in errors


def test_the_mirror_image_is_asked_too_and_told_apart(run: RunDir) -> None:
    found = assess(run, Questions(mirrored=True), CPU)
    assert found.metrics == last_record(run, "test")
    loop = make_loop(run, SoloComms())
    loop.engine.load(newest_checkpoint(run).engine)
    images, labels = loop.evaluations["test"].at(0)
    for number in range(1, len(loop.evaluations["test"])):
        more = loop.evaluations["test"].at(number)
        images, labels = torch.cat([images, more[0]]), torch.cat([labels, more[1]])
    both = [loop.engine.predict(each).logits[-1].double() for each in (images, images.flip(3))]
    assert found.mirrored is not None
    assert found.mirrored["deepest_top1"] == (sum(both).argmax(dim=1) == labels).double().mean().item()  # type: ignore[union-attr]


def test_thresholds_for_a_target_come_from_the_validation_split(tiny_root: Path, tmp_path: Path) -> None:
    run = trained(tiny_root, tmp_path / "run", "data.shards=16", "data.valid=30")
    early_exits = assess(run, Questions(exit_target="accuracy=-5"), CPU).early_exits
    assert early_exits is not None
    assert early_exits.chosen is not None
    assert early_exits.table.settings[-1].thresholds == early_exits.chosen
    on_valid = assess(run, Questions("valid", exit_target="accuracy=-5"), CPU)
    assert on_valid.early_exits is not None
    assert on_valid.early_exits.chosen == early_exits.chosen
    assert on_valid.early_exits.table.settings[-1].top1 >= on_valid.metrics["deepest_top1"] - 0.05 - 1e-12


@pytest.mark.parametrize(
    ("target", "message"), [("accuracy=-1", "has no validation split"), ("accuracy", "has no validation split")]
)
def test_a_target_needs_samples_that_were_held_out(target: str, message: str, run: RunDir) -> None:
    code, shown, errors = evaluated(str(run.path), "--exit-target", target)
    assert (code, shown) == (2, "")
    assert message in errors


@pytest.mark.parametrize("text", ["accuracy", "accuracy=", "speed=1", "accuracy=much", "accuracy=-101", "accuracy=nan"])
def test_a_target_that_is_none_is_refused(text: str, tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SHORT, "data.shards=16", "data.valid=30"))
    make_loop(run, SoloComms()).close()
    with pytest.raises(ConfigError, match="expected accuracy=POINTS"):
        assess(run, Questions(exit_target=text), CPU)


def test_a_target_that_no_threshold_reaches_says_so(tiny_root: Path, tmp_path: Path) -> None:
    run = trained(tiny_root, tmp_path / "run", "data.shards=16", "data.valid=30")
    with pytest.raises(CheckError, match="no thresholds reach it: one threshold for all heads reaches"):
        assess(run, Questions(exit_target="accuracy=90"), CPU)


def as_image_folders(index: SetIndex, folder: Path) -> Path:
    for split in index.splits:
        shards = load_own_shards(index, split, rank=0, world_size=1)
        for image, label, number in zip(shards.images, shards.labels.tolist(), shards.ids.tolist(), strict=True):
            path = folder / split / index.classes[label] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)
    return folder


def test_other_data_of_a_known_form_are_evaluated_and_nothing_is_kept(
    run: RunDir, tiny_root: Path, tmp_path: Path
) -> None:
    run.evaluation("test").unlink(missing_ok=True)
    prepared = tiny_root / "cifar10"
    for folder in (prepared, as_image_folders(read_index(prepared), tmp_path / "images")):
        code, shown, errors = evaluated(str(run.path), "--data", str(folder), "--json")
        found = json.loads(shown)
        assert (code, found["data"]) == (0, str(folder)), errors
        assert found["metrics"]["deepest_top1"] == last_record(run, "test")["deepest_top1"]
    assert not run.evaluation("test").exists()


def test_two_workers_count_each_sample_once(run: RunDir, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--log-dir", str(tmp_path), "--standalone")
    asked = ("evaluate", str(run.path), "--json", "--device", "cpu", "--exit-thresholds", "0.2")
    command = [*torchrun, "--nproc-per-node", "2", "-m", "fmfsd", *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    both, alone = json.loads(done.stdout), assess(run, Questions(thresholds=("0.2",)), CPU)
    assert both["metrics"] == pytest.approx(alone.metrics, rel=1e-6)
    assert alone.early_exits is not None
    by_both, by_one = both["early_exits"]["table"]["settings"][0], alone.early_exits.table.settings[0]
    assert (by_both["top1"], by_both["leaving"]) == (by_one.top1, by_one.leaving)
    curve = [point.top1 for point in alone.early_exits.curve]
    assert [point["top1"] for point in both["early_exits"]["curve"]] == curve


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("images_in", ["memory", "files"])
def test_one_batch_of_images_is_held_at_a_time(
    images_in: str, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large a split is; another is there while it is computed."""
    run = trained(tiny_root, tmp_path / "run", f"data.images_in={images_in}")
    held: list[weakref.ref[Tensor]] = []
    most, at = 0, EvaluationBatches.at

    def counted(batches: EvaluationBatches, number: int) -> tuple[Tensor, Tensor]:
        nonlocal most
        images, labels = at(batches, number)
        held.append(weakref.ref(images))
        most = max(most, sum(each() is not None for each in held))
        return images, labels

    monkeypatch.setattr(EvaluationBatches, "at", counted)
    assess(run, Questions("train"), CPU)
    assert len(held) > 20
    assert most <= 2


def measured_by(comms: Comms, folder: Path) -> int:
    """How many costs this worker has measured."""
    config, measured, measure = load_config(str(RunDir(folder).config)), 0, early_exits._cost

    def counted(*arguments: Any) -> early_exits.MeasuredCost:
        nonlocal measured
        measured += 1
        return measure(*arguments)

    index, network = read_index(set_folder(config.data)), build_network(config)
    with (
        closing(evaluation_batches(config, index, "test", comms, CPU, False)) as batches,
        patch.object(early_exits, "_cost", counted),
    ):
        early_exits.measure_costs(network.eval(), batches, Form.of(config.train), comms)
    return measured


def test_no_worker_waits_while_another_measures(run: RunDir) -> None:
    assert run_workers(measured_by, 2, run.path) == [3, 3]


@pytest.mark.fault("F11")
def test_results_that_can_not_be_stored_are_shown_and_written_elsewhere(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, out = RunDir(Path(shutil.copytree(run.path, tmp_path / "run"))), tmp_path / "results.json"
    monkeypatch.setattr("fmfsd.evaluation.eval_artifacts.write_whole", full_disk)
    code, shown, errors = evaluated(str(copied.path), "--json", "--out", str(out))
    assert (code, json.loads(shown)["metrics"]) == (0, last_record(run, "test")), errors
    assert json.loads(out.read_text()) == json.loads(shown)
    assert "the results can't be stored there: [Errno 28] No space left on device; --out FILE" in errors
    nowhere = str(tmp_path / "no" / "out")
    code, again, errors = evaluated(str(copied.path), "--no-early-exits", "--json", "--out", nowhere)
    assert (code, json.loads(again)["metrics"]) == (3, last_record(run, "test"))
    assert f"--out {nowhere}: can't be written: " in errors


@pytest.mark.fault("F34")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_run_that_can_only_be_read_is_evaluated_and_reported(run: RunDir, tmp_path: Path) -> None:
    """On a real read-only mount."""
    mount = f'mount --bind {run.path} {run.path} && mount -o remount,ro,bind {run.path} && exec "$@"'
    read_only = ["unshare", "--mount", "sh", "-c", mount, "sh", command("fmfsd")]
    page = str(tmp_path / "page.html")
    found = {
        name: subprocess.run([*read_only, *arguments], capture_output=True, text=True, timeout=120)
        for name, arguments in {
            "evaluate": ("evaluate", str(run.path), "--json", "--device", "cpu", "--no-early-exits"),
            "report": ("report", str(run.path)),
            "report elsewhere": ("report", str(run.path), "--out", page),
        }.items()
    }
    assert json.loads(found["evaluate"].stdout)["metrics"] == last_record(run, "test")
    assert found["evaluate"].returncode == 0
    assert "warning" in found["evaluate"].stderr
    assert "Read-only file system" in found["evaluate"].stderr
    assert (found["report"].returncode, "write the page elsewhere with --out FILE" in found["report"].stderr) == (
        3,
        True,
    )
    assert (found["report elsewhere"].returncode, Path(page).exists()) == (0, True), found["report elsewhere"].stderr
