"""Stopped anywhere, by any number of workers, and resumed by any other number: the same samples, the same result."""

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from fmfsd.checkpoint import CheckpointFolder, Saved
from fmfsd.comms import Comms
from fmfsd.data.order import shard_epoch
from fmfsd.loop import Loop
from fmfsd.rundir import RunDir
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


def parts(workers: st.SearchStrategy[int]) -> st.SearchStrategy[list[Part]]:
    """Up to three of them, and one that goes to the end."""
    stopped = st.builds(Part, workers, st.integers(0, STEPS), st.booleans(), st.booleans())
    last = st.builds(Part, workers, st.none())
    return st.builds(lambda some, end: [*some, end], st.lists(stopped, min_size=1, max_size=3), last)


def train_part(comms: Comms, folder: Path, part: Part) -> tuple[str, list[tuple[int, list[int]]]]:
    """Its state at the end, and the (step, official positions of the samples) that this worker trained on."""
    if part.slow:
        CheckpointFolder.write = _slow_write  # type: ignore[method-assign, assignment]
    seen: list[tuple[int, list[int]]] = []
    loop = make_loop(RunDir(folder), comms, stop_after=part.stop, evaluating=part.evaluating)
    with closing(loop):
        loop.resume()
        loop._train_one_step = _noting(loop, seen)  # type: ignore[method-assign]
        state = loop.run()
    return state, seen


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


def in_parts(folder: Path, root: Path, found: Sequence[Part], *changes: str) -> tuple[RunDir, dict[int, list[int]]]:
    """The finished run, and which samples each of its steps took."""
    shutil.rmtree(folder, ignore_errors=True)
    run, samples = make_run(folder, tiny_config(root, *CHANGES, *changes)), dict[int, list[int]]()
    for part in found:
        answers = run_workers(train_part, part.workers, run.path, part)
        taken: dict[int, list[int]] = {}
        for _, seen in answers:
            for step, ids in seen:
                taken.setdefault(step, []).extend(ids)
        assert not samples.keys() & taken.keys(), "a step that a graceful stop had saved was made again"
        samples.update(taken)
    assert {state for state, _ in answers} == {"finished"}
    return run, samples


@pytest.fixture(scope="module")
def whole(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], RunDir]:
    """Uninterrupted runs by number of workers and precision."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        (size, precision): in_parts(folder / f"{size}-{precision}", tiny_root, [Part(size, None)], change)[0]
        for size, precision in (*((size, "fp32") for size in WORLD_SIZES), (1, "fp64"))
        for change in (f"train.precision={precision}",)
    }


@pytest.mark.parametrize("size", WORLD_SIZES)
@settings(max_examples=4)
@seed(1)
@given(data=st.data())
def test_the_same_number_of_workers_comes_to_the_same_bits(
    size: int,
    data: st.DataObject,
    whole: dict[tuple[int, str], RunDir],
    tiny_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """In an epoch's middle, at its end, in an evaluation, before the first step, and while a save is being written."""
    folder = tmp_path_factory.getbasetemp() / f"parted-{size}"
    run, _ = in_parts(folder, tiny_root, data.draw(parts(st.just(size))))
    assert records(run) == records(whole[size, "fp32"])
    assert newest_weights(run) == newest_weights(whole[size, "fp32"])


@pytest.mark.fault("F40")
@settings(max_examples=4)
@seed(2)
@given(found=parts(st.sampled_from(WORLD_SIZES)))
def test_any_other_number_goes_on_with_the_same_samples_to_the_same_numbers(
    found: list[Part], whole: dict[tuple[int, str], RunDir], tiny_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run, samples = in_parts(tmp_path_factory.getbasetemp() / "mixed", tiny_root, found, "train.precision=fp64")
    assert_records_agree(records(run), records(whole[1, "fp64"]), tolerance=1e-9)
    _, expected = in_parts(tmp_path_factory.getbasetemp() / "alone", tiny_root, [Part(1, None)])
    assert samples == expected


def test_in_fp32_another_number_agrees_for_five_steps(
    whole: dict[tuple[int, str], RunDir], tiny_root: Path, tmp_path: Path
) -> None:
    changed = [Part(4, 1), Part(2, 2), Part(1, 4), Part(2, None)]
    run, _ = in_parts(tmp_path / "run", tiny_root, changed)
    early = [[line for line in records(each) if line["step"] <= 5] for each in (run, whole[1, "fp32"])]
    assert_records_agree(*early, tolerance=1e-5)


def test_an_epoch_takes_each_sample_at_most_once_and_leaves_out_what_the_permutation_names(
    tiny_root: Path, tmp_path: Path
) -> None:
    """Over stops and changes of the number of workers."""
    stops = [Part(2, 2), Part(4, 4), Part(1, None)]
    _, samples = in_parts(tmp_path / "run", tiny_root, stops, "train.max_steps=10")
    loop = run_workers(shards_of, 1, tmp_path / "run")[0]
    for epoch, (start, end) in enumerate(pairwise((0, STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH))):
        taken = [sample for step in range(start, end) for sample in samples[step]]
        assert len(set(taken)) == len(taken) == 48 * STEPS_AN_EPOCH
        left_out = {ids[row] for number, ids in enumerate(loop) for row in _left_out(epoch, number, len(ids))}
        assert set(taken) | left_out == {sample for ids in loop for sample in ids}
        assert not set(taken) & left_out


def _left_out(epoch: int, shard: int, size: int) -> list[int]:
    """The rows of the shard that come last in the epoch's permutation."""
    return [int(row) for row in shard_epoch(0, epoch, shard, size).permutation[3 * STEPS_AN_EPOCH :]]


def shards_of(comms: Comms, folder: Path) -> list[list[int]]:
    """The official positions of each shard's samples."""
    shards = make_loop(RunDir(folder), comms).batches.shards
    return [part.tolist() for part in shards.ids.split(shards.sizes)]
