"""Tiny runs inside the test's own process, or inside workers of `run_workers`."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from fmfsd.config import RunConfig, dump_config, load_config
from fmfsd.distributed.collectives import Comms
from fmfsd.evaluation.accumulator import Evaluation
from fmfsd.evaluation.trained_run import run_config
from fmfsd.run.heartbeat import ProgressFile
from fmfsd.run.run_dir import RunDir
from fmfsd.training.attempt_fence import Fence
from fmfsd.training.loop import Loop
from fmfsd.training.stop_flag import StopFlag
from fmfsd.training.trainer import build_loop
from launcher.diagnostics.drill.results import CLOCK_METRICS

TINY = (
    "data.name=cifar10",
    "model.backbone=resnet8",
    "train.epochs=2",
    "train.log_every=1 step",
    "optim.milestones=[1]",
    "optim.lr=0.05",
    "train.precision=fp32",
    "train.channels_last=false",
)
"""Four steps of ResNet-8 on the 256 samples of the `tiny_root` fixture."""


DIRECT = ("--starter", "direct")
"""For launches that are not about torchrun: one import of torch less for each node."""

SMALL = ("data.shards=16", "train.batch=16", "train.max_steps=14", "checkpoint.every_steps=4")


def tiny_config(root: Path, *changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", [*TINY, *changes], data_root=str(root))


def make_run(folder: Path, config: RunConfig) -> RunDir:
    run = RunDir(folder)
    run.create()
    run.config.write_text(dump_config(config))
    return run


class StopAfter(StopFlag):
    """Asks for a stop once the loop that it is given to has done so many steps; if `evaluating`, in an evaluation."""

    def __init__(self, steps: int | None, *, evaluating: bool = False) -> None:
        super().__init__(None)
        self.steps, self.evaluating = steps, evaluating
        self._loop: Loop | None = None

    def watch(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def requested(self) -> bool:
        if self.steps is None or self._loop is None or self._loop.position.step < self.steps:
            return False
        return not self.evaluating or not self._loop.position.evaluated


def make_loop(
    run: RunDir,
    comms: Comms,
    *,
    stop_after: int | None = None,
    evaluating: bool = False,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (a constant)
) -> Loop:
    """This worker's loop, ready to `resume` and `run`."""
    stop = StopAfter(stop_after, evaluating=evaluating)
    config = run_config(run)
    progress = ProgressFile(run.rank_progress(comms.rank))
    loop = build_loop(run, config, comms, device, stop, progress, Fence(run, 1))
    stop.watch(loop)
    return loop


def train_run(comms: Comms, folder: Path, stop_after: int | None = None) -> str:
    """Train the run in `folder`, from where it is; its state at the end."""
    loop = make_loop(RunDir(folder), comms, stop_after=stop_after)
    with closing(loop):
        loop.resume()
        return loop.run()


def records(run: RunDir) -> list[dict[str, Any]]:
    """The metrics, without what depends on the clock."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK_METRICS} for line in lines]


def assert_records_agree(one: list[dict[str, Any]], other: list[dict[str, Any]], *, tolerance: float) -> None:
    """The same records, their floats equal to a relative `tolerance`."""
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert right[name] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value), name


def newest_weights(run: RunDir) -> bytes:
    """The bytes of the newest checkpoint's weights and of its optimizer state."""
    folder = max(path for path in run.checkpoints.iterdir() if path.name.startswith("step-"))
    return (folder / "model.safetensors").read_bytes() + (folder / "optimizer.safetensors").read_bytes()


def evaluation(**metrics: float) -> Evaluation:
    """Of a network that has no more to say of itself."""
    return Evaluation((), metrics, [], {}, [], None)
