"""Tiny runs inside the test process, or inside the workers of `run_workers`."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from fmfsd.config import RunConfig, dump_config, load_config
from fmfsd.distributed.collectives import Comms
from fmfsd.evaluation.accumulator import Evaluation
from fmfsd.evaluation.trained_run import load_run_config
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.run_dir import RunDir
from fmfsd.training.attempt_fence import AttemptFence
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
"""For tests of launches that do not concern torchrun: saves one import of torch per node."""

SMALL = ("data.shards=16", "train.batch=16", "train.max_steps=14", "checkpoint.every_steps=4")


def tiny_config(root: Path, *changes: str) -> RunConfig:
    return load_config("cifar100-resnet18", [*TINY, *changes], data_root=str(root))


def make_run(folder: Path, config: RunConfig) -> RunDir:
    run = RunDir(folder)
    run.create()
    run.config.write_text(dump_config(config))
    return run


class StopAfter(StopFlag):
    """Requests a stop once the watched loop has made `steps` steps; with `evaluating`, in its next evaluation."""

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
    """Return this worker's loop, ready to `resume` and `run`."""
    stop = StopAfter(stop_after, evaluating=evaluating)
    config = load_run_config(run)
    progress = HeartbeatFile(run.rank_progress(comms.rank))
    loop = build_loop(run, config, comms, device, stop, progress, AttemptFence(run, 1))
    stop.watch(loop)
    return loop


def train_run(comms: Comms, folder: Path, stop_after: int | None = None) -> str:
    """Train the run in `folder` from its newest checkpoint; return its final state."""
    loop = make_loop(RunDir(folder), comms, stop_after=stop_after)
    with closing(loop):
        loop.resume()
        return loop.run()


def read_records(run: RunDir) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, without values that depend on the clock."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK_METRICS} for line in lines]


def assert_records_agree(one: list[dict[str, Any]], other: list[dict[str, Any]], *, tolerance: float) -> None:
    """Assert that both lists have the same records, with floats equal to a relative `tolerance`."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value), name


def newest_weights(run: RunDir) -> bytes:
    """Return the bytes of the newest checkpoint's weights and optimizer state."""
    folder = max(path for path in run.checkpoints.iterdir() if path.name.startswith("step-"))
    return (folder / "model.safetensors").read_bytes() + (folder / "optimizer.safetensors").read_bytes()


def make_evaluation(**metrics: float) -> Evaluation:
    """Return the result of an evaluation that has only metrics."""
    return Evaluation((), metrics, [], {}, [], None)
