"""DeepSpeed's engine trains like PyTorch's at every ZeRO stage, and each engine resumes checkpoints of the other."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fmfsd.checkpoint.store import load_checkpoint
from fmfsd.config import RunConfig, dump_config
from fmfsd.distributed.collectives import Comms
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import list_positions
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.runs import make_loop, make_run, newest_weights, read_records, tiny_config
from tests.helpers.workers import run_workers

pytestmark = needs_deepspeed

STEPS = 10
SMALL = (
    *("data.shards=4", "train.batch=16", "train.epochs=10", "optim.milestones=[6 epochs]"),
    *("train.log_every=1 step", "train.evaluate_every=8 steps"),
)
"""Sixteen steps per epoch."""
SGD = ("optim.lr=0.01", "optim.weight_decay=5e-4")
ADAMW = ("optim.name=adamw", "optim.lr=1e-3", "train.ema=0.9", "train.micro_batch=8", "optim.clip_norm=5")
ONE_BRANCH = ("model.branches=[stage2]",)
"""For tests that need not repeat the comparison of the engines with all branches."""
BF16 = ("train.precision=bf16", "train.channels_last=true")
TORCH = ("engine.name=torch",)
STAGES = [("engine.name=deepspeed", f"engine.zero_stage={stage}") for stage in range(4)]


@dataclass(frozen=True)
class Setup:
    """A training setup: a ZeRO stage, overrides for both engines, and overrides for DeepSpeed's only."""

    stage: int
    changes: tuple[str, ...] = ()
    deepspeed_changes: tuple[str, ...] = ()
    workers: int = 2

    @property
    def expected_run(self) -> str:
        """The name of the reference run by PyTorch's engine, which several setups share."""
        return f"torch, {self.workers} workers, {' '.join(self.changes)}"


SETUPS = {
    "offloaded": Setup(2, deepspeed_changes=("engine.offload=true",)),
    "offloaded, alone": Setup(3, deepspeed_changes=("engine.offload=true",), workers=1),
    "bf16 at 0": Setup(0, BF16),
    "bf16 at 1": Setup(1, BF16),
    "bf16 at 3": Setup(3, BF16),
    "statistics of each worker": Setup(1, ("model.sync_bn=false",)),
    "recompute": Setup(2, deepspeed_changes=("train.recompute=all",)),
}


def train_runs(comms: Comms, runs: Sequence[Path], nudged: Sequence[Path] = ()) -> None:
    """Train each of `runs` from its newest checkpoint; first change the weights of `nudged` by one ulp."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by DeepSpeed
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
    return torch.tensor([each["loss"] for each in read_records(RunDir(run)) if each["split"] == "train"])


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw, EMA, accumulation, clipping"])
def test_every_zero_stage_trains_like_pytorch(optim: tuple[str, ...], tiny_root: Path, tmp_path: Path) -> None:
    """The first five losses agree to 1e-5. All deviate at most three times as much as those of networks whose weights
    differ in the last bit (for fifty such networks: `python -m tests.benchmarks.engines --part spread`).
    """
    nudged, stages = ([tmp_path / f"{kind} {number}" for number in range(4)] for kind in ("nudged", "stage"))
    runs = [tmp_path / "torch", *nudged, *stages]
    for folder, engine in zip(runs, (*[TORCH] * 5, *STAGES), strict=True):
        make_run(folder, tiny_config(tiny_root, *SMALL, *optim, *engine, f"train.max_steps={STEPS}"))
    run_workers(train_runs, 2, runs, nudged)
    expected, *others = map(losses, runs)
    differences = [(one - expected).abs() for one in others]
    spread = max(difference.max() for difference in differences[:4])
    assert len(expected) == STEPS
    for stage, difference in enumerate(differences[4:]):
        assert (difference[:5] <= 1e-5 * expected[:5]).all(), (stage, difference[:5])
        assert difference.max() <= 3 * spread, (stage, difference.max(), spread)


@pytest.fixture(scope="module")
def setup_runs(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs of all setups, each trained once."""
    folder = tmp_path_factory.mktemp("setups")
    for workers in (1, 2):
        chosen = {name: setup for name, setup in SETUPS.items() if setup.workers == workers}
        runs = {setup.expected_run: (*setup.changes, *TORCH) for setup in chosen.values()}
        runs |= {
            name: (*setup.changes, *STAGES[setup.stage], *setup.deepspeed_changes) for name, setup in chosen.items()
        }
        for name, changes in runs.items():
            make_run(folder / name, tiny_config(tiny_root, *SMALL, *ONE_BRANCH, *ADAMW, "train.max_steps=5", *changes))
        run_workers(train_runs, workers, [folder / name for name in runs])
    return folder


@pytest.mark.parametrize("name", SETUPS)
def test_other_setups_train_like_pytorch_too(name: str, setup_runs: Path) -> None:
    one, other = setup_runs / SETUPS[name].expected_run, setup_runs / name
    assert losses(other) == pytest.approx(losses(one), rel=1e-3 if SETUPS[name].changes == BF16 else 1e-5)
    evaluated, expected = (
        {k: v for k, v in read_records(RunDir(run))[-1].items() if "loss" in k} for run in (other, one)
    )
    assert evaluated == pytest.approx(expected, rel=1e-3)


def newest_state(run: RunDir) -> dict[str, torch.Tensor]:
    (newest, *_) = list_positions(run.checkpoints)
    engine = load_checkpoint(run.checkpoints / newest.folder_name).engine
    return {**engine.model, **engine.optimizer}


def resume(run: Path, config: RunConfig, workers: int) -> None:
    RunDir(run).config.write_text(dump_config(config))
    run_workers(train_runs, workers, [run])


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_run_resumes_with_another_engine_zero_stage_and_number_of_workers(
    optim: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    """The run changes in the middle of epochs, every two steps."""
    parts = [(TORCH, 2), (STAGES[1], 2), (STAGES[2], 1), (STAGES[3], 2), (STAGES[0], 2), (STAGES[3], 1), (TORCH, 1)]
    uninterrupted = make_run(
        tmp_path / "uninterrupted", tiny_config(tiny_root, *SMALL, *ONE_BRANCH, *optim, "train.max_steps=14")
    )
    run_workers(train_runs, 2, [uninterrupted.path])
    run = make_run(tmp_path / "in parts", tiny_config(tiny_root))
    for number, (engine, workers) in enumerate(parts, 1):
        changes = (*SMALL, *ONE_BRANCH, *optim, *engine, f"train.max_steps={2 * number}")
        resume(run.path, tiny_config(tiny_root, *changes), workers)
    assert losses(run.path) == pytest.approx(losses(uninterrupted.path), rel=1e-4)
    one, other = (newest_state(each) for each in (run, uninterrupted))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value - other[name]).double().norm() <= 3e-2 * other[name].double().norm() + 1e-5, name


@pytest.fixture(scope="module")
def stopped(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[RunDir, RunDir]]:
    """Return for each ZeRO stage a run of four steps, and one that was resumed by other processes after two."""

    def config(stage: int, steps: int) -> RunConfig:
        return tiny_config(tiny_root, *SMALL, *ONE_BRANCH, *ADAMW, *STAGES[stage], f"train.max_steps={steps}")

    folder = tmp_path_factory.mktemp("stopped")
    whole = [make_run(folder / f"whole {stage}", config(stage, 4)) for stage in range(4)]
    parted = [make_run(folder / f"parted {stage}", config(stage, 2)) for stage in range(4)]
    run_workers(train_runs, 2, [run.path for run in (*whole, *parted)])
    for stage, run in enumerate(parted):
        run.config.write_text(dump_config(config(stage, 4)))
    run_workers(train_runs, 2, [run.path for run in parted])
    return dict(enumerate(zip(whole, parted, strict=True)))


@pytest.mark.parametrize("stage", range(4))
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    stage: int, stopped: dict[int, tuple[RunDir, RunDir]]
) -> None:
    whole, parted = stopped[stage]
    assert newest_weights(whole) == newest_weights(parted)


def imported_modules(comms: Comms, run: Path) -> set[str]:
    train_runs(comms, [run])
    return set(sys.modules)


def test_zero_starts_without_torchs_compiler(tiny_root: Path, tmp_path: Path) -> None:
    """Its import would take longer than the rest of the start; DeepSpeed imports it for the kernels of Muon."""
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL, *STAGES[3], "train.max_steps=1"))
    for modules in run_workers(imported_modules, 2, run.path):
        assert "deepspeed.runtime.zero.muon.original_muon" in modules
        assert "torch._inductor.compile_fx" not in modules
