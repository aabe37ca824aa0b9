"""Results of an evaluation: computed by hand, on several workers, and in files."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fmfsd.config import load_config
from fmfsd.config.schedule import TrainSchedule
from fmfsd.data.loading.shards_in_memory import load_worker_shards
from fmfsd.data.shards.index import read_index
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.evaluation.accumulator import BINS, EvaluationAccumulator
from fmfsd.evaluation.attention_masks import AttentionMaps, AttentionRecorder
from fmfsd.evaluation.eval_artifacts import select_images
from fmfsd.model.build import build_network
from fmfsd.model.network import Outputs
from tests.helpers.runs import make_loop, make_run, read_records, tiny_config, train_run

HEADS = ("branch1", "fused", "deepest")
CLASSES, SAMPLES = 5, 200


def random_outputs() -> tuple[list[Tensor], Tensor, AttentionMaps]:
    generator = torch.Generator().manual_seed(3)
    logits = [3 * torch.randn(SAMPLES, CLASSES, generator=generator) for _ in HEADS]
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    return logits, labels, AttentionMaps(("stage1", "fused"), torch.rand(SAMPLES, 2, 3, 4, generator=generator))


def accumulate(rows: slice) -> EvaluationAccumulator:
    logits, labels, attention = random_outputs()
    tally = EvaluationAccumulator(HEADS, CLASSES, torch.device("cpu"))
    for start in range(rows.start, rows.stop, 37):
        part = slice(start, min(start + 37, rows.stop))
        outputs = Outputs([head[part] for head in logits], [], torch.empty(0))
        tally.add(outputs, labels[part], AttentionMaps(attention.names, attention.grids[part]))
    return tally


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("number", range(len(HEADS)))
def test_values_that_are_not_finite_are_counted_and_named(number: int, value: float) -> None:
    """One logit of one image and one head is not finite."""
    logits, labels, _ = random_outputs()
    logits[number][7, 2] = value
    tally = EvaluationAccumulator(HEADS, CLASSES, torch.device("cpu"))
    tally.add(Outputs(logits, [], torch.empty(0)), labels)
    evaluation = tally.compute(SingleWorkerComms())
    names = [f"the output of {name}" for name in (HEADS[number], "ensemble")]
    assert evaluation.non_finite_values == (["the loss", *names] if HEADS[number] == "deepest" else names)
    assert sum(map(sum, evaluation.confusion)) == SAMPLES


def test_every_result_equals_the_one_computed_by_hand() -> None:
    logits, labels, attention = random_outputs()
    evaluation = accumulate(slice(0, SAMPLES)).compute(SingleWorkerComms())
    heads = [*logits, torch.stack(logits).double().mean(dim=0)]
    predictions = [head.argmax(dim=1) for head in heads]
    assert evaluation.heads == (*HEADS, "ensemble")
    assert [evaluation.metrics[f"{name}_top1"] for name in evaluation.heads] == [
        (each == labels).double().mean().item() for each in predictions
    ]
    assert evaluation.agreement == [
        [(one == other).double().mean().item() for one in predictions] for other in predictions
    ]
    for true in range(CLASSES):
        for predicted in range(CLASSES):
            count = ((labels == true) & (predictions[2] == predicted)).sum()
            assert evaluation.confusion[true][predicted] == int(count)
    confidence = heads[0].double().softmax(dim=1).amax(dim=1)
    bins = [(confidence >= number / BINS) & (confidence < (number + 1) / BINS) for number in range(BINS)]
    calibration = evaluation.calibration["branch1"]
    assert calibration.samples == [int(each.sum()) for each in bins]
    correct = predictions[0] == labels
    error = sum((confidence[each].sum() - correct[each].sum()).abs() for each in bins) / SAMPLES
    assert calibration.error == pytest.approx(float(error), abs=1e-6)
    assert evaluation.attention is not None
    expected_grid = attention.grids[labels == 2].mean(dim=0)
    assert torch.tensor(evaluation.attention.grids[2]) == pytest.approx(expected_grid, abs=6e-6)


class SimulatedPair(SingleWorkerComms):
    """Two workers, simulated one at a time: the other worker's values are given in advance."""

    size = 2

    def __init__(self, other: EvaluationAccumulator) -> None:
        super().__init__()
        self._others = [other.sums, other._attention]

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        other = self._others.pop(0)
        return tensor if other is None else tensor + other


def test_two_workers_get_the_result_of_one_even_if_one_has_no_image() -> None:
    whole = accumulate(slice(0, SAMPLES)).compute(SingleWorkerComms())
    for cut in (70, SAMPLES):
        both = accumulate(slice(0, cut)).compute(SimulatedPair(accumulate(slice(cut, SAMPLES))))
        assert (both.confusion, both.calibration) == (whole.confusion, whole.calibration)
        assert both.attention == whole.attention


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ((), ("stage1", "stage2", "stage3", "averaged", "fused")),
        (("model.masks=own",), ("stage1", "stage2", "stage3", "fused")),
        (("model.sem=softmax", "model.masks=own"), ("stage1", "stage2", "stage3", "fused")),
        (("model.sem=none",), ("fused",)),
        (("model.sem=cbam", "model.fusion=side"), ("stage1", "stage2", "stage3", "averaged", "fused")),
    ],
)
def test_recording_the_masks_of_the_fusion_does_not_change_the_logits(
    changes: tuple[str, ...], names: tuple[str, ...]
) -> None:
    network = build_network(load_config("cifar100-resnet18", ("data.root=data", *changes))).eval()
    images, watcher = torch.randn(2, 3, 32, 32), AttentionRecorder()
    plain = network(images).logits
    with watcher.recording(network):
        recorded = network(images).logits
    assert all(torch.equal(one, other) for one, other in zip(plain, recorded, strict=True))
    assert watcher.last is not None
    assert watcher.last.names == names
    if "softmax" in str(changes):
        torch.testing.assert_close(watcher.last.grids[:, :3].sum(dim=1), torch.ones(2, *watcher.last.grids.shape[2:]))
    elif len(names) == 5:
        torch.testing.assert_close(watcher.last.grids[:, 3], watcher.last.grids[:, :3].mean(dim=1))
        assert ((watcher.last.grids[:, :4] > 0) & (watcher.last.grids[:, :4] < 1)).all()
    network(images)
    assert len(network.fusion._forward_hooks) == 0  # type: ignore[union-attr]


def test_a_run_writes_evaluation_files_and_the_same_ones_after_a_resume(tiny_root: Path, tmp_path: Path) -> None:
    changes = ("train.max_steps=4", "train.evaluate_every=2 steps", "optim.milestones=[]")
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *changes))
    train_run(SingleWorkerComms(), run.path)
    written = json.loads(run.evaluation("test").read_text())
    last = [line for line in read_records(run) if line["split"] == "test"][-1]
    assert written["step"] == 4
    assert all(last[name] == value for name, value in written["metrics"].items())
    assert [path.name for path in run.attention_files()] == ["step-00000002.json", "step-00000004.json"]
    attention = json.loads(run.attention_files()[-1].read_text())
    pictures = json.loads(run.attention_images.read_text())
    assert len(attention["grids"]) == len(attention["said"]) == len(pictures["png"]) == len(set(pictures["labels"]))
    assert pictures["split"] == "test"
    before = {path: path.read_bytes() for path in (run.evaluation("test"), *run.attention_files())}
    resumed = make_run(tmp_path / "resumed", tiny_config(tiny_root, *changes, "checkpoint.every_steps=1"))
    loop = make_loop(resumed, SingleWorkerComms())
    loop.resume()
    loop._train_one_step()
    loop._save()
    loop.checkpoints.finish()
    loop.close()
    train_run(SingleWorkerComms(), resumed.path)
    assert {path.name: path.read_bytes() for path in (resumed.evaluation("test"), *resumed.attention_files())} == {
        path.name: content for path, content in before.items()
    }


def test_evaluation_files_that_cannot_be_written_are_a_warning_and_not_fatal(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, "train.max_steps=2", "optim.milestones=[]"))
    (run.path / "evaluation").write_text("a file instead of a folder")
    loop = make_loop(run, SingleWorkerComms())
    with closing(loop):
        loop.resume()
        assert loop.run() == "finished"
    assert [each.partition(":")[0] for each in loop.progress.warnings] == [
        "the evaluation of test can't be written",
        "the attention maps can't be written",
    ]


def test_attention_maps_are_written_at_ten_evaluations_and_at_the_last() -> None:
    def steps_with_maps(total: int, every: int) -> list[int]:
        timeline = TrainSchedule(10, total, 1, every, (), (), 0)
        return [step for step in range(1, total + 1) if timeline.evaluation_due(step) and timeline.attention_due(step)]

    assert steps_with_maps(200, 1) == list(range(20, 201, 20))
    assert steps_with_maps(30, 10) == [10, 20, 30]
    assert steps_with_maps(25, 10) == [10, 20, 25]


def test_the_images_for_attention_maps_are_read_from_the_first_shards(tiny_root: Path, tmp_path: Path) -> None:
    """If the set has fewer classes than images are shown, no shard is opened after each class has an image."""
    folder = Path(shutil.copytree(tiny_root / "cifar10", tmp_path / "cifar10"))
    index, config = read_index(folder), tiny_config(tmp_path)
    labels = load_worker_shards(index, "test", rank=0, world_size=1).labels.tolist()
    last = max(labels.index(label) for label in range(10))
    for shard in index.splits["test"][last + 1 :]:
        index.path(shard).unlink()
    assert last < 63
    pictures = select_images(index, "test", config, torch.device("cpu"))
    images, picture_labels, _ids = pictures.load_raw_batch(0)
    assert picture_labels.tolist() == list(range(10))
    whole = load_worker_shards(read_index(tiny_root / "cifar10"), "test", rank=0, world_size=1)
    assert torch.equal(images, whole.images[[labels.index(label) for label in range(10)]])
