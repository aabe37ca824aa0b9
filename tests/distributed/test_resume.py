"""Stopped at any step on any number of workers and resumed on any other number: same samples, same result."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fmfsd.checkpoint import Checkpoint, CheckpointStore
from fmfsd.data.sampling import draw_shard_epoch
from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import TrainPosition
from fmfsd.training.loop import Loop
from tests.helpers.runs import assert_records_agree, make_loop, make_run, newest_weights, read_records, tiny_config
from tests.helpers.workers import run_workers

STEPS, STEPS_AN_EPOCH = 7, 5
CHANGES = (
    *("data.shards=16", "train.batch=48", "train.epochs=9", f"train.max_steps={STEPS}"),
    *("train.evaluate_every=3 steps", "train.log_every=2 steps", "checkpoint.every_steps=2"),
)
"""256 samples in 16 shards of 16, of which a step takes 3 and an epoch of 5 steps 15."""
WORLD_SIZES = (1, 2, 4)


@dataclass(frozen=True)
class RunPart:
    """A part of a run on `workers` workers, which ends by a stop request after `stop` steps.

    With `evaluating` the request comes in an evaluation. With `slow` checkpoints are written slowly.
    """

    workers: int
    stop: int | None
    evaluating: bool = False
    slow: bool = False


def parts_with_stops(workers: int) -> list[RunPart]:
    """Return parts that stop before the first step, in the middle of an epoch, in an evaluation and at an epoch's end,
    two of them while a checkpoint is being written; and one that runs to the end.
    """
    return [
        RunPart(workers, 0),
        RunPart(workers, 1, slow=True),
        RunPart(workers, 3, evaluating=True),
        RunPart(workers, 4, slow=True),
        RunPart(workers, None),
    ]


ENDS = [TrainPosition(0), TrainPosition(2), TrainPosition(3, evaluated=False), TrainPosition(5), TrainPosition(STEPS)]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, the positions at which its parts ended, and the samples of each step."""

    run: RunDir
    ends: list[TrainPosition]
    samples: dict[int, list[int]]


def train_part(comms: Comms, folder: Path, part: RunPart) -> tuple[TrainPosition, list[tuple[int, list[int]]]]:
    """Return the final position, and (step, sample ids) for each step of this worker."""
    if part.slow:
        CheckpointStore.write = _slow_write  # type: ignore[method-assign, assignment]
    samples_by_step: list[tuple[int, list[int]]] = []
    loop = make_loop(RunDir(folder), comms, stop_after=part.stop, evaluating=part.evaluating)
    with closing(loop):
        loop.resume()
        loop._train_one_step = _recording(loop, samples_by_step)  # type: ignore[method-assign]
        loop.run()
    return loop.position, samples_by_step


_write = CheckpointStore.write


def _slow_write(folder: CheckpointStore, saved: Checkpoint) -> None:
    time.sleep(0.2)
    _write(folder, saved)


def _recording(loop: Loop, samples_by_step: list[tuple[int, list[int]]]) -> Any:
    step_once = loop._train_one_step

    def record_and_step() -> None:
        step = loop.position.step
        samples_by_step.append((step, loop.batches.ids(*divmod(step, STEPS_AN_EPOCH)).tolist()))
        step_once()

    return record_and_step


def train_in_parts(folder: Path, root: Path, parts: Sequence[RunPart], *changes: str) -> TrainedRun:
    run = make_run(folder, tiny_config(root, *CHANGES, *changes))
    ends, samples = list[TrainPosition](), dict[int, list[int]]()
    for part in parts:
        results = run_workers(train_part, part.workers, run.path, part)
        new_samples: dict[int, list[int]] = {}
        for _, samples_by_step in results:
            for step, ids in samples_by_step:
                new_samples.setdefault(step, []).extend(ids)
        assert not samples.keys() & new_samples.keys(), "a step that a graceful stop had saved was made again"
        samples.update(new_samples)
        (end,) = {position for position, _ in results}
        ends.append(end)
    return TrainedRun(run, ends, samples)


@pytest.fixture(scope="module")
def whole(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], TrainedRun]:
    """Return uninterrupted runs by number of workers and precision."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        (size, precision): train_in_parts(folder / f"{size}-{precision}", tiny_root, [RunPart(size, None)], change)
        for size, precision in (*((size, "fp32") for size in WORLD_SIZES), (1, "fp64"))
        for change in (f"train.precision={precision}",)
    }


@pytest.mark.parametrize("size", WORLD_SIZES)
def test_the_same_number_of_workers_resumes_bit_for_bit(
    size: int, whole: dict[tuple[int, str], TrainedRun], tiny_root: Path, tmp_path: Path
) -> None:
    parted = train_in_parts(tmp_path / "run", tiny_root, parts_with_stops(size))
    assert parted.ends == ENDS
    assert read_records(parted.run) == read_records(whole[size, "fp32"].run)
    assert newest_weights(parted.run) == newest_weights(whole[size, "fp32"].run)


@pytest.mark.fault("F40")
def test_another_number_of_workers_resumes_with_the_same_samples_and_metrics(
    whole: dict[tuple[int, str], TrainedRun], tiny_root: Path, tmp_path: Path
) -> None:
    """Three of the six changes between 1, 2 and 4 workers; `changing` covers the others."""
    parts = [RunPart(1, 1), RunPart(4, 3, evaluating=True), RunPart(2, 4, slow=True), RunPart(1, None)]
    mixed = train_in_parts(tmp_path / "run", tiny_root, parts, "train.precision=fp64")
    assert mixed.ends == ENDS[1:]
    assert_records_agree(read_records(mixed.run), read_records(whole[1, "fp64"].run), tolerance=1e-9)
    assert mixed.samples == whole[1, "fp32"].samples


@pytest.fixture(scope="module")
def changing(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Return a run of two epochs on 2, 4, 1 and again 2 workers."""
    parts = [RunPart(2, 1), RunPart(4, 3), RunPart(1, 5), RunPart(2, None)]
    folder = tmp_path_factory.mktemp("changing")
    return train_in_parts(folder / "run", tiny_root, parts, f"train.max_steps={2 * STEPS_AN_EPOCH}")


def test_in_fp32_another_number_of_workers_agrees_for_five_steps(
    changing: TrainedRun, whole: dict[tuple[int, str], TrainedRun]
) -> None:
    runs = (changing.run, whole[1, "fp32"].run)
    assert_records_agree(*([line for line in read_records(run) if line["step"] <= 5] for run in runs), tolerance=1e-5)


def test_an_epoch_takes_each_sample_at_most_once_and_leaves_out_the_end_of_the_permutation(
    changing: TrainedRun,
) -> None:
    """This holds across stops and changes of the number of workers."""
    shards = shards_of(changing.run)
    for epoch, (start, end) in enumerate(pairwise((0, STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH))):
        taken = [sample for step in range(start, end) for sample in changing.samples[step]]
        assert len(set(taken)) == len(taken) == 48 * STEPS_AN_EPOCH
        left_out = {ids[row] for number, ids in enumerate(shards) for row in _left_out(epoch, number, len(ids))}
        assert set(taken) | left_out == {sample for ids in shards for sample in ids}
        assert not set(taken) & left_out


def _left_out(epoch: int, shard: int, size: int) -> list[int]:
    """Return the rows of the shard that come last in the epoch's permutation."""
    return [int(row) for row in draw_shard_epoch(0, epoch, shard, size).permutation[3 * STEPS_AN_EPOCH :]]


def shards_of(run: RunDir) -> list[list[int]]:
    """Return the sample ids of each shard."""
    with closing(make_loop(run, SingleWorkerComms())) as loop:
        shards = loop.batches.shards
        return [part.tolist() for part in shards.ids.split(shards.sizes)]
