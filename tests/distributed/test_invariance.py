"""Invariance: the result is the same on any number of workers, for equal global batch and gradient accumulation."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fmfsd.data.loading.batches import TrainBatches
from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.engine.interface import Engine
from fmfsd.losses import LossTerms, SelfDistillLoss
from fmfsd.run.run_dir import RunDir
from fmfsd.training.compare_traces import largest_difference
from fmfsd.training.loop import Loop
from tests.helpers.runs import assert_records_agree, make_loop, make_run, read_records, tiny_config, train_run
from tests.helpers.workers import run_workers

STEPS = 4
SMALL = ("data.shards=4", "train.batch=4", f"train.max_steps={STEPS}", "optim.milestones=[2 steps]")
"""Each step takes one sample of each of 4 shards; one evaluation at the end."""
FP64 = (*SMALL, "train.precision=fp64")
ONE_STEP = (*FP64, "train.log_every=10 steps")
"""No metrics are written after the first step."""
OPTIONS = {
    "as published": (),
    "learning from the ensemble, by t squared": ("distill.teacher=ensemble", "distill.t_squared=true"),
    "learning from the fused head, smoothed": ("distill.teacher=fused", "train.label_smoothing=0.1"),
    "learning from all others": ("distill.teacher=all_pairs", "distill.label_weight=0.5", "optim.clip_norm=1"),
    "mean squares": ("distill.feature=mse", "model.masks=own"),
    "no features": ("distill.feature=none", "model.sem=none"),
    "side": ("model.fusion=side", "model.sem=cbam", "distill.label_weight=2"),
    "both": ("model.fusion=both", "model.branch=bottleneck", "model.masks=own"),
    "shared out": ("model.sem=softmax", "model.masks=own", "model.branch=attention"),
    "one map": ("model.branches=[stage2]", "distill.teacher=ensemble"),
    "byot": ("method=byot", "distill.t_squared=true"),
    "byot_attention": ("method=byot_attention", "distill.teacher=ensemble"),
    "dks": ("method=dks", "distill.feature=batch_norm"),
    "plain": ("method=plain", "train.label_smoothing=0.1"),
    "micro-batches": ("train.batch=8", "train.micro_batch=4", "distill.teacher=all_pairs"),
}
"""Every value of every loss and network option; the batch-wide feature norm with every teacher, weight and target."""
StepResult = dict[str, dict[str, torch.Tensor]]


class InMemoryTrace:
    """Records the samples and gradients of a step in memory."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def record_batch(self, batches: TrainBatches, epoch: int, micro_step: int) -> None:
        self.positions += batches.ids(epoch, micro_step).tolist()

    def record_step(self, number: int, engine: Engine) -> None:
        self.gradients = {name: value.clone() for name, value in engine.gradients().items()}

    def clear(self) -> None:
        self.positions = []


class OwnNorm(SelfDistillLoss):
    """A wrong loss, as in a script for one worker: the feature norm covers only the worker's own samples."""

    def total(self, terms: LossTerms, global_squares_F: torch.Tensor, *, world_size: int) -> torch.Tensor:
        return super().total(terms, terms.squares_F.detach(), world_size=1)


@dataclass(frozen=True)
class InvarianceCase:
    """A run with config overrides, or with a behaviour that no config can select."""

    changes: tuple[str, ...] = ()
    frozen_bn: bool = False
    own_norm: bool = False

    def loop(self, folder: Path, comms: Comms) -> Loop:
        loop = make_loop(RunDir(folder), comms)
        if self.frozen_bn:
            for module in loop.engine.network.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if self.own_norm:
            loop.loss = OwnNorm(**vars(loop.loss))
        return loop


def make_a_step_each(comms: Comms, cases: dict[Path, InvarianceCase]) -> list[StepResult]:
    """Return for each case the losses, gradients and samples of one step, and the weights and BN buffers after it."""
    results = []
    for folder, case in cases.items():
        with closing(case.loop(folder, comms)) as loop:
            loop.trace = trace = InMemoryTrace()
            loop._train_one_step()
            samples = torch.zeros(256)
            samples[torch.tensor(trace.positions)] += 1
            results.append(
                {
                    "losses": {name: torch.tensor(value) for name, value in loop.means.compute().items()},
                    "gradients": trace.gradients,
                    "samples": {"taken": comms.all_reduce_(samples)},
                    "weights": {name: value.double().clone() for name, value in loop.engine.state().model.items()},
                }
            )
    return results


def run_steps(folder: Path, root: Path, world_size: int, *cases: InvarianceCase) -> list[StepResult]:
    """Make a step of each case on `world_size` workers; return rank 0's results."""
    configs = [tiny_config(root, *ONE_STEP, *case.changes) for case in cases]
    runs = [make_run(folder / f"w{world_size}" / str(number), config) for number, config in enumerate(configs)]
    paths = [run.path for run in runs]
    (results, *_) = run_workers(make_a_step_each, world_size, dict(zip(paths, cases, strict=True)))
    return list(results)


def largest_differences(one: StepResult, other: StepResult) -> dict[str, float]:
    return {what: largest_difference(one[what], other[what]).difference for what in one}


def test_every_option_gives_the_same_result_on_any_number_of_workers(tiny_root: Path, tmp_path: Path) -> None:
    """Identity 11, with synchronised BN and with frozen BN."""
    synchronised = {name: InvarianceCase(changes) for name, changes in OPTIONS.items()}
    without = ("model.sync_bn=false",)
    frozen = {
        f"{name}, frozen": InvarianceCase((*changes, *without), frozen_bn=True) for name, changes in OPTIONS.items()
    }
    cases = {**synchronised, **frozen}
    alone, *others = (run_steps(tmp_path, tiny_root, size, *cases.values()) for size in (1, 2, 4))
    for other in others:
        differences = dict(zip(cases, map(largest_differences, alone, other), strict=True))
        assert {name: each for name, each in differences.items() if max(each.values()) > 1e-9} == {}


@pytest.mark.parametrize(
    "case", [InvarianceCase(own_norm=True), InvarianceCase(("model.sync_bn=false",))], ids=["norm", "BN"]
)
def test_a_quantity_that_is_not_reduced_over_workers_is_detected(
    case: InvarianceCase, tiny_root: Path, tmp_path: Path
) -> None:
    """The test above can fail."""
    alone, two = (run_steps(tmp_path, tiny_root, size, case) for size in (1, 2))
    assert largest_differences(alone[0], two[0])["gradients"] > 1e-3


@pytest.mark.parametrize("world_size", [1, 2])
def test_with_frozen_bn_and_no_feature_norm_accumulation_equals_the_whole_batch(
    world_size: int, tiny_root: Path, tmp_path: Path
) -> None:
    """The loss is a mean over samples then. Only BN and the feature norm depend on the size of the micro-batch."""
    base = ("train.batch=16", "distill.beta=0", "model.sync_bn=false", "data.flip=false", "data.crop_padding=0")
    changes = [base, (*base, "train.micro_batch=4")]
    frozen, free = ([InvarianceCase(each, frozen_bn=frozen_bn) for each in changes] for frozen_bn in (True, False))
    whole, parts, whole_bn, parts_bn = run_steps(tmp_path, tiny_root, world_size, *frozen, *free)
    assert max(largest_differences(whole, parts).values()) < 1e-9
    assert largest_differences(whole_bn, parts_bn)["gradients"] > 1e-2


def train_whole_run(folder: Path, root: Path, world_size: int, *changes: str) -> list[dict[str, Any]]:
    """Train a whole run and return its metrics."""
    run = make_run(folder / f"w{world_size}", tiny_config(root, *changes))
    assert run_workers(train_run, world_size, run.path) == ["finished"] * world_size
    return read_records(run)


def test_workers_in_fp64_train_and_evaluate_like_one(tiny_root: Path, tmp_path: Path) -> None:
    alone, *others = (train_whole_run(tmp_path, tiny_root, size, *FP64) for size in (1, 2, 4))
    assert [record["split"] for record in alone] == [*(["train"] * STEPS), "test"]
    for other in others:
        assert_records_agree(alone, other, tolerance=1e-9)


def test_workers_in_fp32_agree_for_five_steps(tiny_root: Path, tmp_path: Path) -> None:
    changes = (*SMALL, "train.max_steps=5", "optim.lr=0.01")
    alone, *others = (train_whole_run(tmp_path, tiny_root, size, *changes) for size in (1, 2, 4))
    for other in others:
        assert_records_agree(alone[:5], other[:5], tolerance=1e-5)


NO_BRANCH_LOSS = ("distill.label_weight=0", "distill.alpha=0", "distill.beta=0")
LOSSES = {
    "as published": (),
    "ensemble": ("distill.teacher=ensemble", "distill.t_squared=true"),
    "fused": ("distill.teacher=fused",),
    "all others": ("distill.teacher=all_pairs",),
    "mean squares": ("distill.feature=mse",),
    "no features": ("distill.feature=none",),
    "smoothed": ("train.label_smoothing=0.1",),
}


def _trunk_after_a_step(run: RunDir, initial: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return backbone and deepest head after one step that starts with the weights `initial`."""
    with closing(make_loop(run, SingleWorkerComms())) as loop:
        network = loop.engine.network
        network.load_state_dict({**network.state_dict(), **initial})
        loop._train_one_step()
    return {name: value for name, value in network.state_dict().items() if name.startswith(("backbone", "deepest"))}


def _initial_weights(run: RunDir) -> dict[str, torch.Tensor]:
    with closing(make_loop(run, SingleWorkerComms())) as loop:
        return {name: value.clone() for name, value in loop.engine.network.state_dict().items()}


@pytest.mark.parametrize("losses", LOSSES)
def test_branches_without_loss_train_the_trunk_like_the_plain_backbone(
    losses: str, tiny_root: Path, tmp_path: Path
) -> None:
    """Identity 13, for branches without fusion and for fusion next to the trunk."""
    changes = (*ONE_STEP, *LOSSES[losses])
    smoothing = tuple(change for change in changes if "smoothing" in change)
    plain_run = make_run(tmp_path / "plain", tiny_config(tiny_root, *ONE_STEP, *smoothing, "method=plain"))
    initial = _initial_weights(plain_run)
    plain = _trunk_after_a_step(plain_run, initial)
    for method in ("fmfsd_side",) if losses == "fused" else ("fmfsd_side", "byot"):
        run = make_run(tmp_path / method, tiny_config(tiny_root, *changes, *NO_BRANCH_LOSS, f"method={method}"))
        trunk = _trunk_after_a_step(run, initial)
        assert trunk.keys() == plain.keys() == initial.keys()
        for name, value in plain.items():
            torch.testing.assert_close(trunk[name], value, rtol=1e-12, atol=1e-14)
