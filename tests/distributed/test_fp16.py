"""fp16 by either engine: a scale that is too large costs steps, which leave no trace, and is the same for all."""

import math
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn

from fmfsd.comms import Comms
from fmfsd.rundir import RunDir
from tests.distributed.test_deepspeed import ADAMW, SMALL, STAGES, TORCH, go_on, losses
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.runs import make_loop, make_run, newest_weights, records, tiny_config
from tests.helpers.workers import run_workers

pytestmark = needs_deepspeed

FP16 = ("train.precision=fp16", "train.max_steps=6")
TOO_LARGE = 2.0**20


def trained_from(comms: Comms, runs: Sequence[Path], scale: float) -> list[list[float]]:
    """Of each run, the norm of the gradients before each step; its first loss scale is `scale`."""
    warnings.simplefilter("ignore")  # DeepSpeed's own
    return [_norms(comms, folder, scale) for folder in runs]


def _norms(comms: Comms, folder: Path, scale: float) -> list[float]:
    norms: list[float] = []
    with closing(make_loop(RunDir(folder), comms)) as loop:
        loop.resume()
        engine, step = loop.engine, loop.engine.step
        state = engine.state()
        state.optimizer["loss_scale.value"] = torch.tensor(scale)
        engine.load(state)

        def watched(learning_rate: float) -> None:
            norms.append(nn.utils.get_total_norm(engine.gradients().values()).item())
            step(learning_rate)

        engine.step = watched  # type: ignore[method-assign]
        loop.run()
    return norms


def scales(run: Path) -> list[float]:
    return [each["loss_scale"] for each in records(RunDir(run)) if each["split"] == "train"]


def test_every_stage_leaves_out_the_same_steps(tiny_root: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("torch", "stage 0", "stage 1", "stage 2", "stage 3")]
    for folder, engine in zip(runs, (TORCH, *STAGES), strict=True):
        make_run(folder, tiny_config(tiny_root, *SMALL, *ADAMW, *engine, *FP16))
    expected, *others = run_workers(trained_from, 2, runs, TOO_LARGE)[0]
    assert [math.isfinite(norm) for norm in expected] == [False, False, True, True, True, True]
    assert scales(runs[0]) == [TOO_LARGE / 2] + 5 * [TOO_LARGE / 4]
    for folder, norms in zip(runs[1:], others, strict=True):
        assert scales(folder) == scales(runs[0])
        assert norms[2:] == pytest.approx(expected[2:], rel=2e-2)
        assert losses(folder) == pytest.approx(losses(runs[0]), rel=1e-4)


@pytest.mark.parametrize("engine", [TORCH, STAGES[2]], ids=["torch", "stage 2"])
def test_a_run_that_was_stopped_is_the_same_to_the_last_bit(
    engine: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    """The scale of the first steps is what the rest has to go on with."""
    whole, stopped = (
        make_run(tmp_path / name, tiny_config(tiny_root, *SMALL, *ADAMW, *engine, *FP16, f"train.max_steps={steps}"))
        for name, steps in (("whole", 6), ("stopped", 3))
    )
    run_workers(trained_from, 2, [whole.path, stopped.path], TOO_LARGE)
    go_on(stopped.path, tiny_config(tiny_root, *SMALL, *ADAMW, *engine, *FP16), 2)
    assert scales(whole.path) == scales(stopped.path)
    assert newest_weights(whole) == newest_weights(stopped)


def test_gradients_without_end_are_an_error_and_no_step_that_is_left_out(tiny_root: Path, tmp_path: Path) -> None:
    """Of ZeRO in fp32, which by itself would leave out one step after the other."""
    for number, engine in enumerate((STAGES[1], STAGES[3])):
        run = make_run(tmp_path / str(number), tiny_config(tiny_root, *SMALL, *engine, "train.max_steps=2"))
        with pytest.raises(AssertionError, match="the gradients are not finite"):
            run_workers(trained_with_infinite_gradients, 2, run.path)


def trained_with_infinite_gradients(comms: Comms, folder: Path) -> None:
    with closing(make_loop(RunDir(folder), comms)) as loop:
        loop.resume()
        weights = next(loop.engine.network.parameters())
        weights.register_hook(lambda gradient: gradient * torch.inf)
        loop.run()
