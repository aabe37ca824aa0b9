"""`fmfsd evaluate`: results equal those of the run, early exits are correct, and errors are clear."""

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
from fmfsd.data.loading.shards_in_memory import load_worker_shards
from fmfsd.data.shards.index import SetIndex, prepared_set_folder, read_index
from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.engine.precision import PrecisionFormat
from fmfsd.errors import CheckError, ConfigError, NoCheckpointError
from fmfsd.evaluation import early_exits
from fmfsd.evaluation.evaluate_run import EvaluateOptions, evaluate_run
from fmfsd.evaluation.heads import evaluation_batches
from fmfsd.evaluation.output import show_and_write
from fmfsd.evaluation.trained_run import load_newest_checkpoint
from fmfsd.model.build import build_network
from fmfsd.model.network import Outputs
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import TrainPosition
from fmfsd.system.atomic_files import write_json
from tests.helpers.processes import command
from tests.helpers.runs import make_loop, make_run, read_records, tiny_config, train_run
from tests.helpers.workers import run_workers

CPU = torch.device("cpu")
SHORT = ("train.max_steps=3", "checkpoint.every_steps=1", "train.evaluate_batch=24", "optim.milestones=[]")


def train_new_run(root: Path, folder: Path, *changes: str) -> RunDir:
    run = make_run(folder, tiny_config(root, *SHORT, *changes))
    train_run(SingleWorkerComms(), run.path)
    return run


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_new_run(tiny_root, tmp_path_factory.mktemp("evaluated") / "run")


def last_record(run: RunDir, split: str) -> dict[str, float]:
    line = next(line for line in reversed(read_records(run)) if line["split"] == split)
    return {name: value for name, value in line.items() if name not in ("step", "epoch", "split")}


def test_the_metrics_equal_the_runs_last_record_exactly(run: RunDir) -> None:
    result = evaluate_run(run, EvaluateOptions(), CPU)
    show_and_write(result, run=run, out=None, as_json=False)
    assert result.metrics == last_record(run, "test")
    assert (result.step, result.samples, result.checkpoint) == (3, 64, "step-00000003")
    written, written_exits = (
        json.loads(path.read_text()) for path in (run.evaluation("test"), run.early_exits("test"))
    )
    assert (written["step"], written["metrics"]) == (3, result.metrics)
    assert written_exits == json.loads(json.dumps({"step": 3, **result.to_dict()["early_exits"]}))


def test_the_measurement_of_early_exits_is_optional(run: RunDir) -> None:
    result = evaluate_run(run, EvaluateOptions(early_exits=False), CPU)
    assert (result.metrics, result.early_exits) == (last_record(run, "test"), None)
    with pytest.raises(ConfigError, match="there is no early exit to measure"):
        evaluate_run(run, EvaluateOptions(thresholds=("0.5",), early_exits=False), CPU)


@pytest.mark.parametrize(
    "changes",
    [
        ("train.precision=bf16", "train.channels_last=true"),
        ("method=byot", "data.shards=16", "data.valid=30"),
        ("train.ema=0.5",),
    ],
)
def test_the_metrics_equal_the_runs_with_other_precisions_splits_and_ema(
    changes: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    run = train_new_run(tiny_root, tmp_path / "run", *changes)
    for split in {line["split"] for line in read_records(run)} - {"train"}:
        assert evaluate_run(run, EvaluateOptions(split), CPU).metrics == last_record(run, split)


def predict_test_split(run: RunDir) -> tuple[Outputs, Tensor]:
    """Return the outputs of the whole network on the test split in one batch, and the labels."""
    loop = make_loop(run, SingleWorkerComms())
    loop.engine.load(load_newest_checkpoint(run).engine)
    batches = loop.evaluations["test"]
    images, labels = (torch.cat(parts) for parts in zip(*map(batches.load_batch, range(len(batches))), strict=True))
    return loop.engine.predict(images), labels


def test_early_exits_are_consistent_with_the_outputs_of_the_whole_network(run: RunDir) -> None:
    outputs, labels = predict_test_split(run)
    confidence = outputs.logits[0].softmax(dim=1).amax(dim=1)
    threshold = confidence.quantile(0.7).item()
    early_exits = evaluate_run(run, EvaluateOptions(thresholds=(str(threshold), "1")), CPU).early_exits
    assert early_exits is not None
    table = early_exits.table
    some_exit, none_exits = table.settings
    exits = confidence >= threshold
    predictions = torch.where(exits, outputs.logits[0].argmax(dim=1), outputs.logits[-1].argmax(dim=1))
    assert some_exit.top1 == (predictions == labels).double().mean().item()
    share = exits.double().mean().item()
    assert 0 < share < 1
    assert some_exit.leaving == {"branch1": share, "deepest": 1 - share}
    early, late = table.if_all_leave["branch1"].macs, table.if_all_leave["deepest"].macs
    assert some_exit.cost.macs == pytest.approx(share * early + (1 - share) * late, rel=1e-12)
    assert early < table.deepest_alone.macs < late
    assert (none_exits.top1, none_exits.cost.macs) == (last_record(run, "test")["deepest_top1"], late)
    costs = [*(setting.cost for setting in table.settings), *table.if_all_leave.values(), table.deepest_alone]
    assert all(cost.seconds > 0 for cost in costs)


def test_a_network_without_early_heads_has_no_early_exits(tiny_root: Path, tmp_path: Path) -> None:
    run = train_new_run(tiny_root, tmp_path / "run", "method=plain")
    assert evaluate_run(run, EvaluateOptions(), CPU).early_exits is None
    with pytest.raises(ConfigError, match="there is no early exit to measure"):
        evaluate_run(run, EvaluateOptions(thresholds=("0.5",)), CPU)


WRONG_THRESHOLDS = {
    "0.9,0.8": "2 for 1 early heads (branch1): give one per head, or one for all",
    **dict.fromkeys(
        ("", "0", "-0.1", "1.01", "nan", "inf", "sure", "0.9,", "0.9;0.8"),
        "expected probabilities above 0 and up to 1, separated by commas, as in 0.9,0.95",
    ),
}


@pytest.mark.parametrize("text", WRONG_THRESHOLDS)
def test_invalid_thresholds_are_errors(text: str, run: RunDir) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate_run(run, EvaluateOptions(thresholds=("0.5", text)), CPU)
    assert str(caught.value) == f"--exit-thresholds {text}: {WRONG_THRESHOLDS[text]}"


def test_the_error_for_a_missing_split_lists_the_splits(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="--split valid: .*/cifar10 has no such split: choose one of train, test"):
        evaluate_run(run, EvaluateOptions("valid"), CPU)


def test_the_error_for_a_run_without_checkpoints_names_the_remedy(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root))
    with pytest.raises(CheckError, match="has no checkpoint yet: train the run first"):
        evaluate_run(run, EvaluateOptions(), CPU)


def test_a_damaged_checkpoint_is_skipped_and_not_changed(run: RunDir, tmp_path: Path) -> None:
    copy = RunDir(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    names = sorted(path.name for path in copy.checkpoints.iterdir())
    assert names == ["step-00000002", "step-00000003"]
    (copy.checkpoints / names[1] / "model.safetensors").write_bytes(b"")
    assert load_newest_checkpoint(copy).position == TrainPosition(2)
    (copy.checkpoints / names[0] / "model.safetensors").write_bytes(b"")
    with pytest.raises(NoCheckpointError, match="every checkpoint is damaged"):
        load_newest_checkpoint(copy)
    assert sorted(path.name for path in copy.checkpoints.iterdir()) == names


def run_evaluate(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--device", "cpu"])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_tables_or_json(run: RunDir) -> None:
    code, output, _ = run_evaluate(str(run.path), "--exit-thresholds", "0.5")
    assert code == 0
    assert "deepest_top1" in output
    assert "early exits" in output
    code, output, _ = run_evaluate(str(run.path), "--split", "train", "--json")
    assert (code, json.loads(output)["samples"]) == (0, 256)
    assert json.loads(output)["metrics"] == json.loads(run.evaluation("train").read_text())["metrics"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--split", "dev"), 2, "--split dev"),
        (("--exit-thresholds", "2"), 2, "--exit-thresholds 2: expected probabilities"),
    ],
)
def test_the_command_ends_with_a_usage_error(arguments: tuple[str, ...], code: int, message: str, run: RunDir) -> None:
    exit_code, output, errors = run_evaluate(str(run.path), *arguments)
    assert (exit_code, output) == (code, "")
    assert message in errors
    assert "Traceback" not in errors


def test_another_data_set_than_that_of_the_run_is_an_error(run: RunDir, tmp_path: Path) -> None:
    copy = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    write_json(copy.manifest, {"data": "0" * 64, "started": 0})
    with pytest.raises(CheckError, match="is not the data set that .* was trained on"):
        evaluate_run(copy, EvaluateOptions(), CPU)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    code, _, errors = run_evaluate(str(tmp_path / "nowhere"))
    assert code == 2
    assert "config.yaml" in errors


def test_the_evaluation_with_mirrored_images_is_reported_separately(run: RunDir) -> None:
    result = evaluate_run(run, EvaluateOptions(mirrored=True), CPU)
    assert result.metrics == last_record(run, "test")
    loop = make_loop(run, SingleWorkerComms())
    loop.engine.load(load_newest_checkpoint(run).engine)
    images, labels = loop.evaluations["test"].load_batch(0)
    for number in range(1, len(loop.evaluations["test"])):
        more = loop.evaluations["test"].load_batch(number)
        images, labels = torch.cat([images, more[0]]), torch.cat([labels, more[1]])
    both = [loop.engine.predict(each).logits[-1].double() for each in (images, images.flip(3))]
    assert result.mirrored is not None
    assert result.mirrored["deepest_top1"] == (sum(both).argmax(dim=1) == labels).double().mean().item()  # type: ignore[union-attr]


def test_thresholds_for_a_target_come_from_the_validation_split(tiny_root: Path, tmp_path: Path) -> None:
    run = train_new_run(tiny_root, tmp_path / "run", "data.shards=16", "data.valid=30")
    early_exits = evaluate_run(run, EvaluateOptions(exit_target="accuracy=-5"), CPU).early_exits
    assert early_exits is not None
    assert early_exits.chosen is not None
    assert early_exits.table.settings[-1].thresholds == early_exits.chosen
    on_valid = evaluate_run(run, EvaluateOptions("valid", exit_target="accuracy=-5"), CPU)
    assert on_valid.early_exits is not None
    assert on_valid.early_exits.chosen == early_exits.chosen
    assert on_valid.early_exits.table.settings[-1].top1 >= on_valid.metrics["deepest_top1"] - 0.05 - 1e-12


@pytest.mark.parametrize(
    ("target", "message"), [("accuracy=-1", "has no validation split"), ("accuracy", "has no validation split")]
)
def test_an_exit_target_needs_a_validation_split(target: str, message: str, run: RunDir) -> None:
    code, output, errors = run_evaluate(str(run.path), "--exit-target", target)
    assert (code, output) == (2, "")
    assert message in errors


@pytest.mark.parametrize("text", ["accuracy", "accuracy=", "speed=1", "accuracy=much", "accuracy=-101", "accuracy=nan"])
def test_an_invalid_exit_target_is_an_error(text: str, tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SHORT, "data.shards=16", "data.valid=30"))
    make_loop(run, SingleWorkerComms()).close()
    with pytest.raises(ConfigError, match="expected accuracy=POINTS"):
        evaluate_run(run, EvaluateOptions(exit_target=text), CPU)


def test_an_exit_target_that_no_threshold_reaches_is_an_error(tiny_root: Path, tmp_path: Path) -> None:
    run = train_new_run(tiny_root, tmp_path / "run", "data.shards=16", "data.valid=30")
    with pytest.raises(CheckError, match="no thresholds reach it: one threshold for all heads reaches"):
        evaluate_run(run, EvaluateOptions(exit_target="accuracy=90"), CPU)


def write_image_folders(index: SetIndex, folder: Path) -> Path:
    for split in index.splits:
        shards = load_worker_shards(index, split, rank=0, world_size=1)
        for image, label, number in zip(shards.images, shards.labels.tolist(), shards.ids.tolist(), strict=True):
            path = folder / split / index.classes[label] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)
    return folder


def test_other_data_are_evaluated_without_writing_results_to_the_run(
    run: RunDir, tiny_root: Path, tmp_path: Path
) -> None:
    run.evaluation("test").unlink(missing_ok=True)
    prepared = tiny_root / "cifar10"
    for folder in (prepared, write_image_folders(read_index(prepared), tmp_path / "images")):
        code, output, errors = run_evaluate(str(run.path), "--data", str(folder), "--json")
        result = json.loads(output)
        assert (code, result["data"]) == (0, str(folder)), errors
        assert result["metrics"]["deepest_top1"] == last_record(run, "test")["deepest_top1"]
    assert not run.evaluation("test").exists()


def test_two_workers_count_each_sample_once(run: RunDir, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--log-dir", str(tmp_path), "--standalone")
    arguments = ("evaluate", str(run.path), "--json", "--device", "cpu", "--exit-thresholds", "0.2")
    command = [*torchrun, "--nproc-per-node", "2", "-m", "fmfsd", *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
    by_two, by_one = json.loads(completed.stdout), evaluate_run(run, EvaluateOptions(thresholds=("0.2",)), CPU)
    assert by_two["metrics"] == pytest.approx(by_one.metrics, rel=1e-6)
    assert by_one.early_exits is not None
    exits, expected = by_two["early_exits"]["table"]["settings"][0], by_one.early_exits.table.settings[0]
    assert (exits["top1"], exits["leaving"]) == (expected.top1, expected.leaving)
    curve = [point.top1 for point in by_one.early_exits.curve]
    assert [point["top1"] for point in by_two["early_exits"]["curve"]] == curve


def raise_no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("images_in", ["memory", "files"])
def test_at_most_two_batches_of_images_are_in_memory(
    images_in: str, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for a split of any size: one batch is evaluated while the next is prepared."""
    run = train_new_run(tiny_root, tmp_path / "run", f"data.images_in={images_in}")
    batch_refs: list[weakref.ref[Tensor]] = []
    most, at = 0, EvaluationBatches.load_batch

    def count_batches(batches: EvaluationBatches, number: int) -> tuple[Tensor, Tensor]:
        nonlocal most
        images, labels = at(batches, number)
        batch_refs.append(weakref.ref(images))
        most = max(most, sum(each() is not None for each in batch_refs))
        return images, labels

    monkeypatch.setattr(EvaluationBatches, "load_batch", count_batches)
    evaluate_run(run, EvaluateOptions("train"), CPU)
    assert len(batch_refs) > 20
    assert most <= 2


def count_measurements(comms: Comms, folder: Path) -> int:
    """Return the number of costs that this worker has measured."""
    config, num_measured, measure = load_config(str(RunDir(folder).config)), 0, early_exits._cost

    def count_and_measure(*arguments: Any) -> early_exits.MeasuredCost:
        nonlocal num_measured
        num_measured += 1
        return measure(*arguments)

    index, network = read_index(prepared_set_folder(config.data)), build_network(config)
    with (
        closing(evaluation_batches(config, index, "test", comms, CPU, False)) as batches,
        patch.object(early_exits, "_cost", count_and_measure),
    ):
        early_exits.measure_costs(network.eval(), batches, PrecisionFormat.from_config(config.train), comms)
    return num_measured


def test_all_workers_measure_costs_at_the_same_time(run: RunDir) -> None:
    assert run_workers(count_measurements, 2, run.path) == [3, 3]


@pytest.mark.fault("F11")
def test_results_that_cannot_be_stored_are_printed_and_written_to_out(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, out = RunDir(Path(shutil.copytree(run.path, tmp_path / "run"))), tmp_path / "results.json"
    monkeypatch.setattr("fmfsd.evaluation.eval_artifacts.write_atomic", raise_no_space)
    code, output, errors = run_evaluate(str(copy.path), "--json", "--out", str(out))
    assert (code, json.loads(output)["metrics"]) == (0, last_record(run, "test")), errors
    assert json.loads(out.read_text()) == json.loads(output)
    assert "the results can't be stored there: [Errno 28] No space left on device; --out FILE" in errors
    nowhere = str(tmp_path / "no" / "out")
    code, output, errors = run_evaluate(str(copy.path), "--no-early-exits", "--json", "--out", nowhere)
    assert (code, json.loads(output)["metrics"]) == (3, last_record(run, "test"))
    assert f"--out {nowhere}: can't be written: " in errors


@pytest.mark.fault("F34")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_read_only_run_can_be_evaluated_and_reported(run: RunDir, tmp_path: Path) -> None:
    """The run is on a real read-only mount."""
    mount = f'mount --bind {run.path} {run.path} && mount -o remount,ro,bind {run.path} && exec "$@"'
    read_only = ["unshare", "--mount", "sh", "-c", mount, "sh", command("fmfsd")]
    page = str(tmp_path / "page.html")
    result = {
        name: subprocess.run([*read_only, *arguments], capture_output=True, text=True, timeout=120)
        for name, arguments in {
            "evaluate": ("evaluate", str(run.path), "--json", "--device", "cpu", "--no-early-exits"),
            "report": ("report", str(run.path)),
            "report elsewhere": ("report", str(run.path), "--out", page),
        }.items()
    }
    assert json.loads(result["evaluate"].stdout)["metrics"] == last_record(run, "test")
    assert result["evaluate"].returncode == 0
    assert "warning" in result["evaluate"].stderr
    assert "Read-only file system" in result["evaluate"].stderr
    assert (result["report"].returncode, "write the page elsewhere with --out FILE" in result["report"].stderr) == (
        3,
        True,
    )
    assert (result["report elsewhere"].returncode, Path(page).exists()) == (0, True), result["report elsewhere"].stderr
