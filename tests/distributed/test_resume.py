"""Stopped anywhere, by any number of workers, and resumed by any other number: the same samples, the same result."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fmfsd.checkpoint import CheckpointFolder, Saved
from fmfsd.data.sampling import shard_epoch
from fmfsd.distributed.collectives import Comms, SoloComms
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import Position
from fmfsd.training.loop import Loop
from tests.helpers.runs import assert_records_agree, make_loop, make_run, newest_weights, records, tiny_config
from tests.helpers.workers import run_workers

STEPS, STEPS_AN_EPOCH = 7, 5
CHANGES = (
    *("data.shards=16", "train.batch=48", "train.epochs=9", f"train.max_steps={STEPS}"),
    *("train.evaluate_every=3 steps", "train.log_every=2 steps", "checkpoint.every_steps=2"),
)
"""256 samples in 16 shards: 16 each, of which a step takes 3 and an epoch of 5 steps 15."""
WORLD_SIZES = (1, 2, 4)


@dataclass(frozen=True)
class Part:
    """A part of a run by `workers` workers, that ends with a stop request after `stop` steps, in an evaluation if
    `evaluating`, and with a `slow` writer of checkpoints."""

    workers: int
    stop: int | None
    evaluating: bool = False
    slow: bool = False


def stops(workers: int) -> list[Part]:
    """Before the first step, in an epoch's middle, in an evaluation, and at an epoch's end, two of them while a save is
    being written; and one that goes to the end."""
    return [
        Part(workers, 0),
        Part(workers, 1, slow=True),
        Part(workers, 3, evaluating=True),
        Part(workers, 4, slow=True),
        Part(workers, None),
    ]


ENDS = [Position(0), Position(2), Position(3, evaluated=False), Position(5), Position(STEPS)]


@dataclass(frozen=True)
class Trained:
    """A finished run, where its parts ended, and which samples each of its steps took."""

    run: RunDir
    ends: list[Position]
    samples: dict[int, list[int]]


def train_part(comms: Comms, folder: Path, part: Part) -> tuple[Position, list[tuple[int, list[int]]]]:
    """Where it ended, and the (step, official positions of the samples) that this worker trained on."""
    if part.slow:
        CheckpointFolder.write = _slow_write  # type: ignore[method-assign, assignment]
    seen: list[tuple[int, list[int]]] = []
    loop = make_loop(RunDir(folder), comms, stop_after=part.stop, evaluating=part.evaluating)
    with closing(loop):
        loop.resume()
        loop._train_one_step = _noting(loop, seen)  # type: ignore[method-assign]
        loop.run()
    return loop.position, seen


_write = CheckpointFolder.write


def _slow_write(folder: CheckpointFolder, saved: Saved) -> None:
    time.sleep(0.2)
    _write(folder, saved)


def _noting(loop: Loop, seen: list[tuple[int, list[int]]]) -> Any:
    step_once = loop._train_one_step

    def noting() -> None:
        step = loop.position.step
        seen.append((step, loop.batches.ids(*divmod(step, STEPS_AN_EPOCH)).tolist()))
        step_once()

    return noting


def in_parts(folder: Path, root: Path, parts: Sequence[Part], *changes: str) -> Trained:
    run = make_run(folder, tiny_config(root, *CHANGES, *changes))
    ends, samples = list[Position](), dict[int, list[int]]()
    for part in parts:
        answers = run_workers(train_part, part.workers, run.path, part)
        taken: dict[int, list[int]] = {}
        for _, seen in answers:
            for step, ids in seen:
                taken.setdefault(step, []).extend(ids)
        assert not samples.keys() & taken.keys(), "a step that a graceful stop had saved was made again"
        samples.update(taken)
        (end,) = {position for position, _ in answers}
        ends.append(end)
    return Trained(run, ends, samples)


@pytest.fixture(scope="module")
def whole(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Trained]:
    """Uninterrupted runs by number of workers and precision."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        (size, precision): in_parts(folder / f"{size}-{precision}", tiny_root, [Part(size, None)], change)
        for size, precision in (*((size, "fp32") for size in WORLD_SIZES), (1, "fp64"))
        for change in (f"train.precision={precision}",)
    }


@pytest.mark.parametrize("size", WORLD_SIZES)
def test_the_same_number_of_workers_comes_to_the_same_bits(
    size: int, whole: dict[tuple[int, str], Trained], tiny_root: Path, tmp_path: Path
) -> None:
    parted = in_parts(tmp_path / "run", tiny_root, stops(size))
    assert parted.ends == ENDS
    assert records(parted.run) == records(whole[size, "fp32"].run)
    assert newest_weights(parted.run) == newest_weights(whole[size, "fp32"].run)


@pytest.mark.fault("F40")
def test_any_other_number_goes_on_with_the_same_samples_to_the_same_numbers(
    whole: dict[tuple[int, str], Trained], tiny_root: Path, tmp_path: Path
) -> None:
    """Three of the six changes between 1, 2 and 4 workers; `changing` has the others."""
    parts = [Part(1, 1), Part(4, 3, evaluating=True), Part(2, 4, slow=True), Part(1, None)]
    mixed = in_parts(tmp_path / "run", tiny_root, parts, "train.precision=fp64")
    assert mixed.ends == ENDS[1:]
    assert_records_agree(records(mixed.run), records(whole[1, "fp64"].run), tolerance=1e-9)
    assert mixed.samples == whole[1, "fp32"].samples


@pytest.fixture(scope="module")
def changing(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of two epochs by 2, 4, 1 and again 2 workers."""
    parts = [Part(2, 1), Part(4, 3), Part(1, 5), Part(2, None)]
    folder = tmp_path_factory.mktemp("changing")
    return in_parts(folder / "run", tiny_root, parts, f"train.max_steps={2 * STEPS_AN_EPOCH}")


def test_in_fp32_another_number_agrees_for_five_steps(changing: Trained, whole: dict[tuple[int, str], Trained]) -> None:
    runs = (changing.run, whole[1, "fp32"].run)
    assert_records_agree(*([line for line in records(run) if line["step"] <= 5] for run in runs), tolerance=1e-5)


def test_an_epoch_takes_each_sample_at_most_once_and_leaves_out_what_the_permutation_names(changing: Trained) -> None:
    """Over stops and changes of the number of workers."""
    shards = shards_of(changing.run)
    for epoch, (start, end) in enumerate(pairwise((0, STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH))):
        taken = [sample for step in range(start, end) for sample in changing.samples[step]]
        assert len(set(taken)) == len(taken) == 48 * STEPS_AN_EPOCH
        left_out = {ids[row] for number, ids in enumerate(shards) for row in _left_out(epoch, number, len(ids))}
        assert set(taken) | left_out == {sample for ids in shards for sample in ids}
        assert not set(taken) & left_out


def _left_out(epoch: int, shard: int, size: int) -> list[int]:
    """The rows of the shard that come last in the epoch's permutation."""
    return [int(row) for row in shard_epoch(0, epoch, shard, size).permutation[3 * STEPS_AN_EPOCH :]]


def shards_of(run: RunDir) -> list[list[int]]:
    """The official positions of each shard's samples."""
    with closing(make_loop(run, SoloComms())) as loop:
        shards = loop.batches.shards
        return [part.tolist() for part in shards.ids.split(shards.sizes)]
