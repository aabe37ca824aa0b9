"""EMA weights: their update, evaluation with them, and exact resuming."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.engine.ema import WeightEMA
from fmfsd.engine.interface import EngineState
from fmfsd.evaluation.heads import evaluate
from tests.helpers.runs import (
    assert_records_agree,
    make_loop,
    make_run,
    newest_weights,
    read_records,
    tiny_config,
    train_run,
)
from tests.helpers.workers import run_workers

EMA = ("train.ema=0.75",)
SMALL = (*EMA, "data.shards=16", "train.batch=16", "train.max_steps=4", "train.evaluate_every=2 steps")


def test_each_step_updates_the_ema_of_weights_and_batch_statistics(tiny_root: Path, tmp_path: Path) -> None:
    loop = make_loop(
        make_run(tmp_path / "run", tiny_config(tiny_root, *EMA, "train.precision=fp64")), SingleWorkerComms()
    )
    loop.resume()
    assert loop.engine.state().ema_weights == {}
    expected: dict[str, torch.Tensor] = {}
    for _ in range(3):
        loop._train_one_step()
        now = {name: value.clone() for name, value in loop.engine.state().model.items()}
        expected = {name: 0.75 * expected[name] + 0.25 * now[name] for name in now} if expected else now
        expected = {name: value.to(now[name].dtype) for name, value in expected.items()}
    averages = loop.engine.state().ema_weights
    assert averages.keys() == expected.keys() >= {"backbone.stem.1.running_mean"}
    for name, value in expected.items():
        torch.testing.assert_close(averages[name], value, rtol=1e-12, atol=1e-15)


def test_an_evaluation_uses_the_ema_weights(tiny_root: Path, tmp_path: Path) -> None:
    loop = make_loop(make_run(tmp_path / "run", tiny_config(tiny_root, *EMA)), SingleWorkerComms())
    loop.resume()
    for _ in range(2):
        loop._train_one_step()
    plain = make_loop(make_run(tmp_path / "plain", tiny_config(tiny_root)), SingleWorkerComms())
    evaluation = evaluate(loop.engine, loop.evaluations["test"], SingleWorkerComms())
    for weights, is_equal in ((loop.engine.state().evaluated_weights, True), (loop.engine.state().model, False)):
        plain.engine.load(EngineState(weights, {}))
        assert (evaluate(plain.engine, plain.evaluations["test"], SingleWorkerComms()) == evaluation) == is_equal


@pytest.mark.parametrize(("size", "more"), [(1, ()), (2, ()), (2, ("model.sync_bn=false", "train.channels_last=true"))])
def test_a_resumed_run_has_the_ema_of_the_uninterrupted_one_bit_for_bit(
    size: int, more: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    whole, parted = (make_run(tmp_path / name, tiny_config(tiny_root, *SMALL, *more)) for name in ("whole", "parted"))
    run_workers(train_run, size, whole.path)
    assert run_workers(train_run, size, parted.path, 3) == ["stopped"] * size
    run_workers(train_run, size, parted.path)
    assert read_records(parted) == read_records(whole)
    assert newest_weights(parted) == newest_weights(whole)
    assert b".running_var.average" in newest_weights(whole)


def test_the_ema_does_not_depend_on_the_number_of_workers(tiny_root: Path, tmp_path: Path) -> None:
    results = []
    for size in (1, 2):
        run = make_run(tmp_path / str(size), tiny_config(tiny_root, *SMALL, "train.precision=fp64"))
        run_workers(train_run, size, run.path)
        results.append(read_records(run))
    assert_records_agree(*results, tolerance=1e-9)


def test_a_run_that_starts_from_other_weights_starts_a_new_ema(tiny_root: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", tiny_config(tiny_root, *EMA))
    train_run(SingleWorkerComms(), other.path)
    config = tiny_config(tiny_root, *EMA, f"train.init_from={other.path}")
    loop = make_loop(make_run(tmp_path / "run", config), SingleWorkerComms())
    loop.resume()
    assert loop.engine.state().optimizer == {}
    loop._train_one_step()
    state = loop.engine.state()
    assert all(torch.equal(value, state.model[name]) for name, value in state.ema_weights.items())


def test_updates_equal_those_of_torchs_averaged_model_bit_for_bit() -> None:
    """AveragedModel is not used itself because it synchronises with the GPU twice per update."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2).to(torch.bfloat16))
    ours, reference = (
        WeightEMA(network, 0.9),
        AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    )
    for _ in range(4):
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.add_(3) if tensor.dtype == torch.int64 else tensor.add_(torch.randn_like(tensor))
        ours.update(network)
        reference.update_parameters(network)
        expected = reference.module.state_dict()
        assert all(torch.equal(expected[name], value) for name, value in ours.state().items())
