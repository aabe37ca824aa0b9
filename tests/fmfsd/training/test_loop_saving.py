"""When the loop saves, how workers agree before a save, and that a step depends only on the train position."""

import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.engine.precision import configure_arithmetic
from fmfsd.errors import WeightsDivergedError, WorkerMismatchError
from fmfsd.run.run_dir import RunDir
from fmfsd.training.trainer import _require_alike
from tests.helpers.runs import (
    make_evaluation,
    make_loop,
    make_run,
    newest_weights,
    read_records,
    tiny_config,
    train_run,
)
from tests.helpers.workers import run_workers

SMALL = ("data.shards=16", "train.batch=16", "train.max_steps=8", "checkpoint.keep=9", "checkpoint.every_epochs=null")


def steps(run: RunDir) -> list[str]:
    return sorted(path.name.removeprefix("step-0000000") for path in run.checkpoints.iterdir())


def test_checkpoints_are_saved_every_n_steps_and_at_the_end(tiny_root: Path, tmp_path: Path) -> None:
    """There is no additional checkpoint before a due evaluation."""
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "checkpoint.every_steps=3"))
    train_run(SingleWorkerComms(), run.path)
    assert steps(run) == ["3", "6", "8"]


def train_with_save_clock(comms: Comms, folder: Path) -> str:
    """Train with a save clock that is due only on rank 0, in step 3."""
    loop = make_loop(RunDir(folder), comms)
    loop.resume()
    loop.save_clock = type("Clock", (), {"due": property(lambda _: comms.rank == 0 and loop.position.step == 2)})()
    loop.save_clock.restart = lambda: None  # type: ignore[method-assign]
    state = loop.run()
    loop.close()
    return state


@pytest.mark.usefixtures("processes")
def test_all_workers_save_when_rank_0s_clock_is_due(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL))
    assert run_workers(train_with_save_clock, 2, run.path) == ["finished"] * 2
    assert steps(run) == ["3", "8"]


def test_checkpoints_are_saved_every_n_minutes(tiny_root: Path, tmp_path: Path) -> None:
    """The interval is about 1 ms: a save after every step, and before the evaluation, too."""
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "checkpoint.every_minutes=0.00002"))
    train_run(SingleWorkerComms(), run.path)
    assert steps(run) == [*(str(step) for step in range(1, 9)), "8-unevaluated"]


def test_the_best_checkpoint_on_the_validation_split_is_saved_and_kept(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds at any step and after a resume; the last checkpoint is kept, too."""
    scores = iter([0.1, 0.5, 0.5, 0.3])
    monkeypatch.setattr(
        "fmfsd.training.loop.evaluate", lambda *_, **__: make_evaluation(deepest_top1=next(scores, 0.0), loss=1.0)
    )
    valid = ("data.valid=30", "train.evaluate_every=2 steps", "checkpoint.keep=1")
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, *valid))
    train_run(SingleWorkerComms(), run.path, 5)
    assert steps(run) == ["4", "6-unevaluated"]
    train_run(SingleWorkerComms(), run.path)
    assert steps(run) == ["4", "8"]
    with closing(make_loop(run, SingleWorkerComms())) as loop:
        assert loop.checkpoints.best_score() == 0.5


def flip_a_bit_and_save(comms: Comms, folder: Path) -> str:
    """Flip one bit of one weight on rank 1, then save."""
    loop = make_loop(RunDir(folder), comms)
    loop.resume()
    loop._train_one_step()
    if comms.rank == 1:
        next(loop.engine.network.parameters()).data.view(torch.int32)[0, 0, 0, 0] ^= 1
    try:
        loop._save()
    except WeightsDivergedError as error:
        return str(error)
    return "saved"


@pytest.mark.usefixtures("processes")
@pytest.mark.fault("F46")
def test_workers_whose_weights_differ_in_one_bit_do_not_save(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL))
    messages = run_workers(flip_a_bit_and_save, 2, run.path)
    assert [text.rpartition(": ")[2] for text in messages] == [
        "another worker's differ from rank 0's",
        "this worker's differ from rank 0's",
    ]
    assert steps(run) == []


def compare_with_rank_0(comms: Comms, root: Path) -> str:
    config = tiny_config(root, *(() if comms.rank == 0 else ("optim.lr=0.2",)))
    try:
        _require_alike(comms, config)
    except WorkerMismatchError as error:
        return str(error)
    return "alike"


@pytest.mark.usefixtures("processes")
@pytest.mark.fault("F45")
def test_workers_with_another_config_than_rank_0_fail_before_the_first_step(tiny_root: Path) -> None:
    one, other = run_workers(compare_with_rank_0, 2, tiny_root)
    assert one.startswith("another worker's differs from rank 0's")
    assert other.startswith("this worker's config differs from rank 0's")


@pytest.mark.parametrize("method", ["fmfsd", "plain"])
def test_training_does_not_use_global_random_generators(method: str, tiny_root: Path, tmp_path: Path) -> None:
    """Their state neither influences a run nor is changed by it, so it need not be saved."""
    runs = []
    for seed in (1, 2):
        run = make_run(tmp_path / str(seed), tiny_config(tiny_root, *SMALL, f"method={method}"))
        loop = make_loop(run, SingleWorkerComms())
        loop.resume()
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
        loop.run()
        loop.close()
        assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
        runs.append(run)
    assert read_records(runs[0]) == read_records(runs[1])
    assert newest_weights(runs[0]) == newest_weights(runs[1])


def test_every_method_trains_with_deterministic_algorithms(tiny_root: Path, tmp_path: Path) -> None:
    """An operation without a deterministic algorithm would raise an error."""
    try:
        for method in ("fmfsd", "byot", "plain"):
            config = tiny_config(tiny_root, *SMALL, f"method={method}", "train.deterministic=true")
            configure_arithmetic(deterministic=config.train.deterministic)
            assert torch.are_deterministic_algorithms_enabled()
            assert train_run(SingleWorkerComms(), make_run(tmp_path / method, config).path) == "finished"
    finally:
        configure_arithmetic(deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_progress_file_has_the_expected_duration_of_a_stop(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "checkpoint.every_steps=2"))
    loop = make_loop(run, SingleWorkerComms())
    loop.resume()
    loop.run()
    loop.close()
    assert loop.progress.constants["stop_takes_s"] >= loop.checkpoints.save_s > 0
