"""Stub workers, which count through the steps of a run without training, for tests of everything around a worker.

In the processes `fmfsd train` and `fmfsd evaluate` the modules that import torch are replaced. The rest of a worker is
real: detection of its parent's death, heartbeat, log, stop flag, metrics, crash file and exit code. A start takes 0.2 s
of CPU time instead of 5.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from fmfsd.config import RunConfig, TrainSchedule, dump_config, load_config
from fmfsd.data.shards.index import prepared_set_folder, read_index
from fmfsd.distributed.world import World
from fmfsd.errors import NonFiniteLossError
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.metrics import MetricsLog, read_last_records
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import TrainPosition
from fmfsd.system.atomic_files import write_json
from fmfsd.training.attempt_fence import AttemptFence
from fmfsd.training.stop_flag import StopFlag

CHECKOUT = Path(__file__).parents[2]
GOOD_LR, LARGEST_LR = 0.05, 10.0
SITE = """\
import sys
if any(command in " ".join(sys.orig_argv) for command in (" -m fmfsd train ", " -m fmfsd evaluate ")):
    sys.path.append({checkout!r})
    from pathlib import Path
    from tests.helpers.stub_training import replace_training
    replace_training(Path({folder!r}))
"""
"""Content of `sitecustomize.py`, which every Python process imports first."""


@dataclass(frozen=True)
class StubTraining:
    """A folder for PYTHONPATH that replaces training, and through which tests make workers wait."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))}

    def hold(self, run: str, *, attempt: int, step: int) -> Path:
        """Make the workers of the run named `run` wait before step `step` of an attempt, until a stop is requested.

        Returns the file that exists while they wait; deleting it releases them.
        """
        hold = _hold_file(self.folder, run, attempt, step)
        hold.touch()
        return _reached_file(hold)


def stub_training(folder: Path) -> StubTraining:
    """Create a new folder for stub workers. It also contains a user's module with the name of our package."""
    folder.mkdir()
    hide_launcher(folder)
    (folder / "sitecustomize.py").write_text(SITE.format(checkout=str(CHECKOUT), folder=str(folder)))
    return StubTraining(folder)


def hide_launcher(folder: Path) -> None:
    """Put an unrelated module `launcher` into a folder for PYTHONPATH: every command must import the real package."""
    (folder / "launcher.py").write_text("raise RuntimeError('this launcher is not that of fmfsd')\n")


def replace_training(folder: Path) -> None:
    """Replace the modules that import torch in this process, before any of them has been imported."""

    def train(
        run: RunDir, world: World, _device: str, progress: HeartbeatFile, fence: AttemptFence, **_options: Any
    ) -> str:
        return _StubWorker(folder, run, world, progress, fence).run_to_end()

    stubs: dict[str, dict[str, Any]] = {
        "fmfsd.training.trainer": {"train": train, "choose_device": lambda device, _world: device},
        "fmfsd.distributed.process_group": {"join_process_group": _join_process_group},
        "fmfsd.evaluation.evaluate_run": {"EvaluateOptions": lambda split, *_: split, "evaluate_run": _evaluate_run},
        "fmfsd.evaluation.output": {"show_and_write": _show_and_write},
    }
    for name, content in stubs.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)


class _StubWorker:
    """Counts through the steps of a run, from its newest checkpoint, and writes the files that a worker writes."""

    def __init__(self, folder: Path, run: RunDir, world: World, progress: HeartbeatFile, fence: AttemptFence) -> None:
        self._folder, self._run, self._progress, self._fence = folder, run, progress, fence
        self._is_main, self._config = world.is_main, load_config(str(run.config))
        self._timeline = TrainSchedule.from_config(
            self._config, read_index(prepared_set_folder(self._config.data)).num_samples("train")
        )
        self._step = run.newest_step() or 0
        self._metrics = MetricsLog(run.metrics if world.is_main else None, time.time())

    def run_to_end(self) -> str:
        with StopFlag(self._run.stop_request) as stop, closing(self._metrics):
            self._resume()
            while not self._timeline.is_last(self._step) and not stop.requested:
                self._wait_while_held(stop)
                self._make_step()
            state = "finished" if self._timeline.is_last(self._step) else "stopped"
            if self._is_main:
                self._save()
                self._write_outcome(state)
        self._progress.update(state, step=self._step)
        return state

    def _resume(self) -> None:
        self._progress.constants["went_on_after"] = self._step or None
        self._metrics.truncate(self._step // self._timeline.evaluate_every)
        self._show_progress()

    def _wait_while_held(self, stop: StopFlag) -> None:
        """Wait at a hold. Ignores signals, as a hanging worker does, but not a stop request in the run's folder."""
        hold = _hold_file(self._folder, self._run.path.name, self._fence.attempt, self._step)
        if hold.exists():
            _reached_file(hold).touch()
            while _reached_file(hold).exists() and not (self._run.stop_request.exists() and stop.requested):
                time.sleep(0.02)

    def _make_step(self) -> None:
        if self._config.optim.lr > LARGEST_LR:
            raise NonFiniteLossError(f"the loss is not finite in step {self._step + 1}")
        self._step += 1
        if self._timeline.evaluation_due(self._step):
            self._evaluate()
        if self._timeline.checkpoint_due(self._step) and self._is_main:
            self._save()
        self._show_progress()

    def _evaluate(self) -> None:
        epoch = self._timeline.epoch(self._step - 1) + 1
        test_due = self._config.train.evaluate_test and self._timeline.is_last(self._step)
        for split in ("valid", "test") if test_due else ("valid",):
            self._metrics.write(step=self._step, epoch=epoch, split=split, **draw_metrics(self._config, split, epoch))

    def _show_progress(self) -> None:
        totals = {"total_steps": self._timeline.total_steps, "steps_per_epoch": self._timeline.steps_per_epoch}
        self._progress.update("train", step=self._step, **totals)

    def _save(self) -> None:
        folder = self._run.checkpoints / TrainPosition(self._step).folder_name
        folder.mkdir(exist_ok=True)
        write_json(folder / "state.json", {"step": self._step})

    def _write_outcome(self, state: str) -> None:
        self._fence.require_current()
        metrics = read_last_records(self._run.metrics)
        content = {"state": state, "attempt": self._fence.attempt, "step": self._step, "metrics": metrics}
        write_json(self._run.outcome, {**content, "resumable": state == "stopped"})


def draw_metrics(config: RunConfig, split: str, epoch: int) -> dict[str, float]:
    """Return metrics that are a function of the arguments; the accuracy grows with the learning rate up to GOOD_LR."""
    random = Random(f"{dump_config(config)} {split} {epoch}")
    learnt = min(1.0, config.optim.lr / GOOD_LR)
    return {"deepest_top1": learnt * (0.4 + 0.5 * random.random()), "loss": 0.1 + random.random()}


@contextmanager
def _join_process_group(_world: World, _device: str, **_options: Any) -> Iterator[None]:
    yield None


def _evaluate_run(run: RunDir, split: str, *_rest: Any) -> dict[str, Any]:
    config, step = load_config(str(run.config)), run.newest_step()
    return {"split": split, "step": step, "metrics": draw_metrics(config, split, config.train.epochs)}


def _show_and_write(result: dict[str, Any], *, run: RunDir, **_options: Any) -> None:
    print(json.dumps(result))
    run.evaluation(result["split"]).parent.mkdir(exist_ok=True)
    write_json(run.evaluation(result["split"]), result)


def _hold_file(folder: Path, run: str, attempt: int, step: int) -> Path:
    return folder / f"hold-{run}-{attempt}-{step}"


def _reached_file(hold: Path) -> Path:
    return hold.with_name(f"reached-{hold.name}")
