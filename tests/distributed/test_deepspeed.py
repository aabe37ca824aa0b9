"""DeepSpeed's engine trains as PyTorch's does at every ZeRO stage, and what one has saved the other goes on with."""

import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch

from fmfsd.checkpoint.folder import load_checkpoint
from fmfsd.comms import Comms
from fmfsd.config import TrainConfig, dump_config
from fmfsd.position import positions_in
from fmfsd.rundir import RunDir
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.runs import make_loop, make_run, newest_weights, records, tiny_config
from tests.helpers.workers import run_workers

pytestmark = needs_deepspeed

STEPS = 10
SMALL = ("data.shards=16", "train.batch=32", "train.epochs=10", "optim.milestones=[6 epochs]", "train.log_every=1 step")
"""Eight steps an epoch."""
SGD = ("optim.lr=0.01", "optim.weight_decay=5e-4")
ADAMW = ("optim.name=adamw", "optim.lr=1e-3", "train.ema=0.9", "train.micro_batch=16", "optim.clip_norm=5")
TORCH = ("engine.name=torch",)
STAGES = [("engine.name=deepspeed", f"engine.zero_stage={stage}") for stage in range(4)]


def trained(comms: Comms, runs: Sequence[Path], nudged: Sequence[Path] = ()) -> None:
    """Train each of `runs` from where it is; first change the weights of `nudged` by one unit in the last place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DeepSpeed's own
        for folder in runs:
            with closing(make_loop(RunDir(folder), comms)) as loop:
                loop.resume()
                if folder in nudged:
                    nudge(loop.engine.network, seed=nudged.index(folder))
                loop.run()


def nudge(network: torch.nn.Module, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in network.parameters():
            up = torch.rand(weights.shape, generator=generator) < 0.5
            weights.copy_(weights.nextafter(torch.where(up, torch.inf, -torch.inf)))


def losses(run: Path) -> torch.Tensor:
    return torch.tensor([each["loss"] for each in records(RunDir(run)) if each["split"] == "train"])


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw, average, accumulation, clipping"])
def test_every_stage_trains_as_pytorch_does(optim: tuple[str, ...], tiny_root: Path, tmp_path: Path) -> None:
    """Five losses to 1e-5, and all as near as those of networks whose weights differ in the last bit, times 3 (fifty
    of them: `python -m tests.benchmarks.engines --part spread`)."""
    nudged, stages = ([tmp_path / f"{kind} {number}" for number in range(4)] for kind in ("nudged", "stage"))
    runs = [tmp_path / "torch", *nudged, *stages]
    for folder, engine in zip(runs, (*[TORCH] * 5, *STAGES), strict=True):
        make_run(folder, tiny_config(tiny_root, *SMALL, *optim, *engine, f"train.max_steps={STEPS}"))
    run_workers(trained, 2, runs, nudged)
    expected, *others = map(losses, runs)
    differences = [(one - expected).abs() for one in others]
    spread = max(difference.max() for difference in differences[:4])
    assert len(expected) == STEPS
    for stage, difference in enumerate(differences[4:]):
        assert (difference[:5] <= 1e-5 * expected[:5]).all(), (stage, difference[:5])
        assert difference.max() <= 3 * spread, (stage, difference.max(), spread)


@pytest.mark.parametrize(
    ("changes", "workers"),
    [
        ((*STAGES[2], "engine.offload=true"), 2),
        ((*STAGES[3], "engine.offload=true"), 1),
        *(((*STAGES[stage], "train.precision=bf16", "train.channels_last=true"), 2) for stage in (0, 1, 3)),
        ((*STAGES[1], "model.sync_bn=false"), 2),
        ((*STAGES[2], "train.recompute=all"), 2),
    ],
    ids=[
        "offloaded",
        "offloaded, alone",
        "bf16 at 0",
        "bf16 at 1",
        "bf16 at 3",
        "statistics of each worker",
        "recompute",
    ],
)
def test_other_ways_to_train_are_as_pytorchs_too(
    changes: tuple[str, ...], workers: int, tiny_root: Path, tmp_path: Path
) -> None:
    one, other = (tmp_path / name for name in ("torch", "deepspeed"))
    settings = (*SMALL, *ADAMW, "train.max_steps=5", "train.evaluate_every=5 steps", *changes)
    make_run(one, tiny_config(tiny_root, *settings, *TORCH))
    make_run(other, tiny_config(tiny_root, *settings))
    run_workers(trained, workers, [one, other])
    assert losses(other) == pytest.approx(losses(one), rel=1e-3 if "train.precision=bf16" in changes else 1e-5)
    evaluated, expected = ({k: v for k, v in records(RunDir(run))[-1].items() if "loss" in k} for run in (other, one))
    assert evaluated == pytest.approx(expected, rel=1e-3)


def newest_state(run: RunDir) -> dict[str, torch.Tensor]:
    (newest, *_) = positions_in(run.checkpoints)
    engine = load_checkpoint(run.checkpoints / newest.folder_name).engine
    return {**engine.model, **engine.optimizer}


def go_on(run: Path, config: TrainConfig, workers: int) -> None:
    RunDir(run).config.write_text(dump_config(config))
    run_workers(trained, workers, [run])


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_run_goes_on_by_another_engine_stage_and_number_of_workers(
    optim: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    """In the midst of epochs; each part has two steps."""
    parts = [(TORCH, 2), (STAGES[1], 2), (STAGES[2], 1), (STAGES[3], 2), (STAGES[0], 2), (STAGES[3], 1), (TORCH, 1)]
    at_once = make_run(tmp_path / "at once", tiny_config(tiny_root, *SMALL, *optim, "train.max_steps=14"))
    run_workers(trained, 2, [at_once.path])
    run = make_run(tmp_path / "in parts", tiny_config(tiny_root))
    for number, (engine, workers) in enumerate(parts, 1):
        go_on(run.path, tiny_config(tiny_root, *SMALL, *optim, *engine, f"train.max_steps={2 * number}"), workers)
    assert losses(run.path) == pytest.approx(losses(at_once.path), rel=1e-4)
    one, other = (newest_state(each) for each in (run, at_once))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value - other[name]).double().norm() <= 3e-2 * other[name].double().norm() + 1e-5, name


@pytest.mark.parametrize("stage", range(4))
def test_a_run_that_was_stopped_is_the_same_to_the_last_bit(stage: int, tiny_root: Path, tmp_path: Path) -> None:
    def config(steps: int) -> TrainConfig:
        return tiny_config(tiny_root, *SMALL, *ADAMW, *STAGES[stage], f"train.max_steps={steps}")

    whole, stopped = (make_run(tmp_path / name, config(6)) for name in ("whole", "stopped"))
    run_workers(trained, 2, [whole.path])
    for steps in (3, 6):
        go_on(stopped.path, config(steps), 2)
    assert newest_weights(whole) == newest_weights(stopped)
