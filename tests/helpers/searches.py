"""Real sweeps of tiny runs, started by `fmfsd-tune`."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.ledger import read_facts
from tests.helpers.processes import command, run_command, wait_until
from tests.helpers.runs import TINY

SPACE = """\
config: cifar100-resnet18
trials: 3
parameters:
  distill.alpha: {uniform: [0.0, 0.9]}
  model.branches: {subset: {of: [stage1, stage2], min: 1}}
"""
STUB_SPACE = """\
config: cifar100-resnet18
trials: 3
parameters:
  optim.weight_decay: {uniform: [0.0, 0.9]}
  model.branches: {grid: [[stage1, stage2], [stage1]]}
"""
"""For stub workers: two networks, whose costs do not depend on the weight decay, so each is probed once."""
RUNS = (
    *TINY,
    "data.shards=16",
    "data.valid=30",
    "train.batch=16",
    "train.max_steps=20",
    "checkpoint.every_steps=4",
    "checkpoint.every_epochs=null",
)
"""Twenty steps, in two epochs of 14: one evaluation after the first epoch and one at the end."""
EPOCH_STEPS = 14
FIVE_EPOCHS = ("train.epochs=5", "train.max_steps=null")
"""Only for stub workers, whose steps take no time."""
METRICS = ("--metric", "valid/deepest_top1", "--metric", "cost/train_macs")


def sweep_arguments(
    root: Path, folder: Path, *more: str, space: str = SPACE, changes: tuple[str, ...] = ()
) -> list[str]:
    """Return the arguments of `fmfsd-tune` for a sweep in `folder`/sweep; `root` is that of `tiny_root`.

    Parameters of `space` are not overridden by `--set`.
    """
    file = folder / "space.yaml"
    file.write_text(space)
    all_changes = (*RUNS, f"data.root={root}", *changes)
    sets = [part for change in all_changes if change.partition("=")[0] not in space for part in ("--set", change)]
    return ["--space", str(file), *sets, "--sweep-dir", str(folder / "sweep"), "--search", "random", *more]


def run_tune(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_command("fmfsd-tune", *arguments, cwd=cwd, env=env)


def facts_of_kind(sweep: SweepDir, fact: str) -> list[dict[str, Any]]:
    """Return the ledger's facts of this kind."""
    return [each for each in read_facts(sweep.ledger) if each["fact"] == fact]


def trial_results(sweep: SweepDir) -> dict[int, tuple[str, dict[str, float]]]:
    """Return final state and metrics by trial number: trials that run in parallel end in any order."""
    ended = sorted(facts_of_kind(sweep, "ended"), key=lambda fact: fact["trial"])
    return {each["trial"]: (each["state"], each["metrics"]) for each in ended}


@dataclass
class SweepProcess:
    """A running `fmfsd-tune`, its sweep, and its processes."""

    process: subprocess.Popen[str]
    sweep: SweepDir

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        def holds() -> Any:
            if self.process.poll() is not None:
                raise AssertionError(f"fmfsd-tune ended before {what}: {self.wait_for_end()}")
            return condition()

        return wait_until(holds, what)

    def processes(self, *parts: str) -> list[psutil.Process]:
        """Return the descendants whose command line contains all `parts`."""
        matching = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(part in line for part in parts):
                matching.append(process)
        return matching

    def wait_for_end(self) -> tuple[int, str, str]:
        """Wait for the end; return exit code, standard output and standard error."""
        output, errors = self.process.communicate(timeout=240)
        return self.process.returncode, output, errors


@contextmanager
def start_sweep(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[SweepProcess]:
    """Start `fmfsd-tune`; kill it at the end of the block if it still runs."""
    process = subprocess.Popen(
        [command("fmfsd-tune"), *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    sweep = SweepDir(
        Path(arguments[arguments.index("--sweep-dir") + 1] if "--sweep-dir" in arguments else arguments[-1])
    )
    try:
        yield SweepProcess(process, sweep)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
