"""When the loop saves, what it asks of the other workers first, and that nothing but the position decides a step."""

import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from fmfsd.distributed.collectives import Comms, SoloComms
from fmfsd.engine.precision import exact_arithmetic
from fmfsd.errors import DivergedError, UnlikeError
from fmfsd.run.run_dir import RunDir
from fmfsd.training.trainer import _require_alike
from tests.helpers.runs import evaluation, make_loop, make_run, newest_weights, records, tiny_config, train_run
from tests.helpers.workers import run_workers

SMALL = ("data.shards=16", "train.batch=16", "train.max_steps=8", "checkpoint.keep=9", "checkpoint.every_epochs=null")


def steps(run: RunDir) -> list[str]:
    return sorted(path.name.removeprefix("step-0000000") for path in run.checkpoints.iterdir())


def test_checkpoints_come_every_so_many_steps_and_at_the_end(tiny_root: Path, tmp_path: Path) -> None:
    """Also before an evaluation that is due; after it comes the next one's turn."""
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "checkpoint.every_steps=3"))
    train_run(SoloComms(), run.path)
    assert steps(run) == ["3", "6", "8"]


def train_with_a_clock(comms: Comms, folder: Path) -> str:
    """One that strikes on rank 0 alone, in step 3."""
    loop = make_loop(RunDir(folder), comms)
    loop.resume()
    loop.save_clock = type("Clock", (), {"due": property(lambda _: comms.rank == 0 and loop.position.step == 2)})()
    loop.save_clock.restart = lambda: None  # type: ignore[method-assign]
    state = loop.run()
    loop.close()
    return state


@pytest.mark.usefixtures("processes")
def test_all_workers_save_when_rank_0s_clock_says_so(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL))
    assert run_workers(train_with_a_clock, 2, run.path) == ["finished"] * 2
    assert steps(run) == ["3", "8"]


def test_the_clock_strikes_after_so_many_minutes(tiny_root: Path, tmp_path: Path) -> None:
    """A thousandth of a second: after every step, and before the evaluation too."""
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "checkpoint.every_minutes=0.00002"))
    train_run(SoloComms(), run.path)
    assert steps(run) == [*(str(step) for step in range(1, 9)), "8-unevaluated"]


def test_the_best_on_the_validation_split_is_saved_and_stays(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes, also over a stop; the last one is there too."""
    scores = iter([0.1, 0.5, 0.5, 0.3])
    monkeypatch.setattr(
        "fmfsd.training.loop.evaluate", lambda *_, **__: evaluation(deepest_top1=next(scores, 0.0), loss=1.0)
    )
    valid = ("data.valid=30", "train.evaluate_every=2 steps", "checkpoint.keep=1")
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, *valid))
    train_run(SoloComms(), run.path, 5)
    assert steps(run) == ["4", "6-unevaluated"]
    train_run(SoloComms(), run.path)
    assert steps(run) == ["4", "8"]
    with closing(make_loop(run, SoloComms())) as loop:
        assert loop.checkpoints.best_score() == 0.5


def spoil_and_save(comms: Comms, folder: Path) -> str:
    """One bit of one weight of rank 1."""
    loop = make_loop(RunDir(folder), comms)
    loop.resume()
    loop._train_one_step()
    if comms.rank == 1:
        next(loop.engine.network.parameters()).data.view(torch.int32)[0, 0, 0, 0] ^= 1
    try:
        loop._save()
    except DivergedError as error:
        return str(error)
    return "saved"


@pytest.mark.usefixtures("processes")
@pytest.mark.fault("F46")
def test_workers_whose_weights_differ_in_a_bit_do_not_save(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL))
    told = run_workers(spoil_and_save, 2, run.path)
    assert [text.rpartition(": ")[2] for text in told] == ["another worker's differ", "this worker's differ"]
    assert steps(run) == []


def compare_with_rank_0(comms: Comms, root: Path) -> str:
    config = tiny_config(root, *(() if comms.rank == 0 else ("optim.lr=0.2",)))
    try:
        _require_alike(comms, config)
    except UnlikeError as error:
        return str(error)
    return "alike"


@pytest.mark.usefixtures("processes")
@pytest.mark.fault("F45")
def test_workers_with_another_config_than_rank_0_are_found_before_the_first_step(tiny_root: Path) -> None:
    one, other = run_workers(compare_with_rank_0, 2, tiny_root)
    assert one.startswith("another worker's differs from rank 0's")
    assert other.startswith("this worker's config differs from rank 0's")


@pytest.mark.parametrize("method", ["fmfsd", "plain"])
def test_no_random_generator_is_used_so_that_there_is_none_to_save(
    method: str, tiny_root: Path, tmp_path: Path
) -> None:
    """Whatever state they are in, a run comes to the same, and it leaves them as they are."""
    runs = []
    for seed in (1, 2):
        run = make_run(tmp_path / str(seed), tiny_config(tiny_root, *SMALL, f"method={method}"))
        loop = make_loop(run, SoloComms())
        loop.resume()
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
        loop.run()
        loop.close()
        assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
        runs.append(run)
    assert records(runs[0]) == records(runs[1])
    assert newest_weights(runs[0]) == newest_weights(runs[1])


def test_deterministic_algorithms_are_enough_for_every_method(tiny_root: Path, tmp_path: Path) -> None:
    """An operation that has none would raise."""
    try:
        for method in ("fmfsd", "byot", "plain"):
            config = tiny_config(tiny_root, *SMALL, f"method={method}", "train.deterministic=true")
            exact_arithmetic(deterministic=config.train.deterministic)
            assert torch.are_deterministic_algorithms_enabled()
            assert train_run(SoloComms(), make_run(tmp_path / method, config).path) == "finished"
    finally:
        exact_arithmetic(deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_how_long_a_stop_takes_is_told(tiny_root: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, "checkpoint.every_steps=2"))
    loop = make_loop(run, SoloComms())
    loop.resume()
    loop.run()
    loop.close()
    assert loop.progress.constants["stop_takes_s"] >= loop.checkpoints.save_s > 0
