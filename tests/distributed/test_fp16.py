"""fp16 with both engines: steps that overflow are skipped without a trace, and all ranks use the same loss scale."""

import math
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from fmfsd.config import RunConfig, dump_config
from fmfsd.distributed.collectives import Comms
from fmfsd.errors import NonFiniteLossError
from fmfsd.run.run_dir import RunDir
from tests.distributed.test_deepspeed import ADAMW, ONE_BRANCH, SMALL, STAGES, TORCH, losses, train_runs
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.runs import make_loop, make_run, newest_weights, read_records, tiny_config
from tests.helpers.workers import run_workers

pytestmark = needs_deepspeed

FP16 = ("train.precision=fp16", "train.batch=8", "train.micro_batch=4", "train.max_steps=6")
"""Small batches: on CPUs fp16 takes ten times as long as fp32."""
ENGINES = {"torch": TORCH, **{f"stage {stage}": engine for stage, engine in enumerate(STAGES)}}
STOPPED = ("torch", "stage 2")
TOO_LARGE = 2.0**19


def train_with_scale(comms: Comms, runs: Sequence[Path], scale: float) -> list[list[float]]:
    """Train each run with the initial loss scale `scale`; return the gradient norms before each step."""
    warnings.simplefilter("ignore")  # raised by DeepSpeed
    return [_norms(comms, folder, scale) for folder in runs]


def _norms(comms: Comms, folder: Path, scale: float) -> list[float]:
    norms: list[float] = []
    with closing(make_loop(RunDir(folder), comms)) as loop:
        loop.resume()
        engine, step = loop.engine, loop.engine.step
        state = engine.state()
        state.optimizer["loss_scale.value"] = torch.tensor(scale)
        engine.load(state)

        def record_norm_and_step(learning_rate: float) -> None:
            norms.append(nn.utils.get_total_norm(engine.gradients().values()).item())
            step(learning_rate)

        engine.step = record_norm_and_step  # type: ignore[method-assign]
        loop.run()
    return norms


def scales(run: Path) -> list[float]:
    return [each["loss_scale"] for each in read_records(RunDir(run)) if each["split"] == "train"]


def run_config(root: Path, engine: str, *changes: str) -> RunConfig:
    return tiny_config(root, *SMALL, *ONE_BRANCH, *ADAMW, *ENGINES[engine], *FP16, *changes)


@dataclass(frozen=True)
class Fp16Runs:
    """A run of six steps by each engine with its gradient norms, and two runs that were resumed after three steps."""

    whole: dict[str, RunDir]
    stopped: dict[str, RunDir]
    norms: dict[str, list[float]]


@pytest.fixture(scope="module")
def runs(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Fp16Runs:
    folder = tmp_path_factory.mktemp("fp16")
    whole = {name: make_run(folder / name, run_config(tiny_root, name)) for name in ENGINES}
    half = {name: run_config(tiny_root, name, "train.max_steps=3") for name in STOPPED}
    stopped = {name: make_run(folder / f"{name}, stopped", config) for name, config in half.items()}
    paths = [run.path for run in (*whole.values(), *stopped.values())]
    norms, _ = run_workers(train_with_scale, 2, paths, TOO_LARGE)
    for name, run in stopped.items():
        run.config.write_text(dump_config(run_config(tiny_root, name)))
    run_workers(train_runs, 2, [run.path for run in stopped.values()])
    return Fp16Runs(whole, stopped, dict(zip(ENGINES, norms, strict=False)))


def test_every_zero_stage_skips_the_same_steps(runs: Fp16Runs) -> None:
    expected, one = runs.norms["torch"], runs.whole["torch"].path
    assert [math.isfinite(norm) for norm in expected] == [False, False, True, True, True, True]
    assert scales(one) == [TOO_LARGE / 2] + 5 * [TOO_LARGE / 4]
    for name, run in runs.whole.items():
        assert scales(run.path) == scales(one)
        assert runs.norms[name][2:] == pytest.approx(expected[2:], rel=2e-2)
        assert losses(run.path) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.parametrize("name", STOPPED)
def test_a_resumed_fp16_run_equals_the_uninterrupted_one_bit_for_bit(name: str, runs: Fp16Runs) -> None:
    """The resumed part continues with the loss scale of the first steps."""
    whole, stopped = runs.whole[name], runs.stopped[name]
    assert scales(whole.path) == scales(stopped.path)
    assert newest_weights(whole) == newest_weights(stopped)


def test_infinite_gradients_in_fp32_are_an_error_and_not_a_skipped_step(tiny_root: Path, tmp_path: Path) -> None:
    """Without our check, ZeRO in fp32 would skip every step."""
    runs = [make_run(tmp_path / str(stage), tiny_config(tiny_root, *SMALL, *STAGES[stage])) for stage in (1, 3)]
    run_workers(refuse_infinite_gradients, 2, [run.path for run in runs])


def refuse_infinite_gradients(comms: Comms, runs: Sequence[Path]) -> None:
    warnings.simplefilter("ignore")  # raised by DeepSpeed
    for folder in runs:
        with closing(make_loop(RunDir(folder), comms)) as loop:
            loop.resume()
            weights = next(loop.engine.network.parameters())
            weights.register_hook(lambda gradient: gradient * torch.inf)
            with pytest.raises(NonFiniteLossError, match="the gradients are not finite"):
                loop.run()
