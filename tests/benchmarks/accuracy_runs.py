"""Runs of the accuracy benchmark: their configs, and running several at a time until all have finished."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmfsd.config import RunConfig, find_changes, load_config, preset_names
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.agent.available_resources import Resources
from launcher.agent.parent_death import with_parent_death
from launcher.agent.visible_gpus import query_driver
from launcher.resources.config_cost import probe_costs
from tests.helpers.processes import command

MILESTONES = (66 / 200, 133 / 200, 190 / 200)
"""Milestones of the method's recipe, as fractions of the run's length."""
DEFAULT_PRESET = "cifar100-resnet18"
"""The preset whose recipe is used for a backbone or data set that has no preset."""
LENGTH_KEYS = ("train.epochs", "train.max_steps")
"""Keys that may change when a run is resumed, but make a finished result a different one."""
STOPPED = 75
INTERRUPTED, TERMINATED = 130, 143
POLL_S, STOP_TIMEOUT_S = 0.1, 300.0
CONTEXT_BYTES, MARGIN = 1 << 30, 1.5
"""GPU memory used by CUDA and its libraries, and the safety factor on the memory that the cost probe reports."""


@dataclass(frozen=True)
class Comparison:
    """The methods, seeds and settings to compare; `settings` are config overrides for every run."""

    backbone: str
    dataset: str
    methods: tuple[str, ...]
    seeds: int
    epochs: int | None
    root: Path
    out: Path
    settings: tuple[str, ...] = ()

    def runs(self) -> list["Run"]:
        """Return the runs ordered by seed, so that a partial benchmark compares all methods."""
        return [Run(self, method, seed) for seed in range(self.seeds) for method in self.methods]

    @property
    def source(self) -> str:
        preset = f"{self.dataset}-{self.backbone}"
        return preset if preset in preset_names() else DEFAULT_PRESET


@dataclass(frozen=True)
class Run:
    """One method with one seed."""

    comparison: Comparison
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.comparison.dataset}-{self.comparison.backbone.replace('/', '-')}-{self.method}-{self.seed}"

    @property
    def folder(self) -> RunDir:
        return RunDir(self.comparison.out.absolute() / self.name)

    @property
    def overrides(self) -> list[str]:
        comparison = self.comparison
        changes = [f"data.name={comparison.dataset}", f"model.backbone={comparison.backbone}", f"method={self.method}"]
        changes += [f"seed={self.seed}", f"data.root={comparison.root.absolute()}"]
        return [*changes, *(length_overrides(comparison.epochs) if comparison.epochs else ()), *comparison.settings]

    @property
    def arguments(self) -> list[str]:
        return [
            *(argument for change in self.overrides for argument in ("--set", change)),
            "--",
            self.comparison.source,
        ]

    def config(self) -> RunConfig:
        """Return the config. Raise ConfigError with all its problems."""
        return load_config(self.comparison.source, self.overrides)

    def outcome(self) -> dict[str, Any]:
        """Return the content of outcome.json; empty while there is none."""
        with suppress(OSError, ValueError):
            return read_json(self.folder.outcome)
        return {}

    @property
    def is_finished(self) -> bool:
        """True if the run finished with this config, and not with another one of the same name."""
        if self.outcome().get("state") != "finished":
            return False
        stored = load_config(str(self.folder.config))
        return not any(
            change.key in LENGTH_KEYS or not change.is_allowed for change in find_changes(stored, self.config())
        )


def length_overrides(epochs: int) -> list[str]:
    """Return overrides that scale the milestones to `epochs`; milestones of a short run that coincide become one."""
    points = sorted({round(share * epochs) for share in MILESTONES} - {0, epochs})
    return [f"train.epochs={epochs}", f"optim.milestones={points}"]


def runs_per_gpu(free_bytes: int, needed_bytes: int, cores: int) -> int:
    """Return the number of concurrent runs for one GPU, limited by its free memory and two cores per run."""
    fits = free_bytes // (round(MARGIN * needed_bytes) + CONTEXT_BYTES)
    return max(1, min(fits, cores // 2))


def concurrent_runs(runs: Sequence[Run], environment: Mapping[str, str]) -> int:
    """Return the number of concurrent runs for this machine: by the largest memory estimate of the runs; one without
    GPUs."""
    resources = Resources.detect(environment)
    if not resources.gpus:
        return 1
    largest = {run.method: run for run in runs}.values()
    needed = [probe_costs(run.config(), run.arguments, workers=1, environment=environment) for run in largest]
    most = max(cost.memory.get("total", 0) for cost in needed)
    free = min((gpu.free for gpu in query_driver().gpus), default=0)
    return (
        len(resources.gpus) * runs_per_gpu(free, most, resources.cores // len(resources.gpus))
        if most
        else len(resources.gpus)
    )


@dataclass(frozen=True)
class RunningLaunch:
    """A launch that is running, its GPU, and the log file of its output."""

    process: subprocess.Popen[bytes]
    gpu: str
    log: Path


@dataclass
class Bench:
    """Run everything in `waiting`, `packed` runs at a time. When `out_of_time` is true, stop the running ones and start
    no more.

    The file `notes` stores for each run the largest number of other runs at the same time, and the `hardware`.
    """

    waiting: list[Run]
    packed: int
    out_of_time: Callable[[], bool]
    notes: Path
    hardware: str
    gpus: Sequence[str] = ()
    running: dict[Run, RunningLaunch] = field(default_factory=dict)
    failed: dict[Run, str] = field(default_factory=dict)

    def run_all(self) -> None:
        """Run until all runs have ended or the time is up."""
        try:
            while self.running or (self.waiting and not self.out_of_time()):
                if self.waiting and len(self.running) < self.packed and not self.out_of_time():
                    self._start(self.waiting.pop(0))
                    continue
                if self.out_of_time():
                    return
                self._poll()
                time.sleep(POLL_S)
        finally:
            self._stop_all()

    def _start(self, run: Run) -> None:
        """Start a launch on the GPU with the fewest runs; it dies with this process."""
        busy = [launch.gpu for launch in self.running.values()]
        gpu = min(self.gpus, key=busy.count, default="")
        log, (*settings, dashes, source) = self.notes.with_name(f"{run.name}.log"), run.arguments
        options = ("--gpus", "1", "--run-dir", str(run.folder.path), dashes, source)
        with log.open("ab") as output:
            process = subprocess.Popen(
                with_parent_death([command("fmfsd-launch"), *settings, *options]),
                env={**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.running[run] = RunningLaunch(process, gpu, log)
        self._write_notes()
        print(f"{run.name}: started", file=sys.stderr, flush=True)

    def _write_notes(self) -> None:
        """Record the number of concurrent runs for each running one."""
        notes, others = read_notes(self.notes), len(self.running) - 1
        for run in self.running:
            most = max(others, notes.get(run.name, {}).get("beside", 0))
            notes[run.name] = {"beside": most, "hardware": self.hardware}
        write_json(self.notes, notes)

    def _poll(self) -> None:
        for run, launch in list(self.running.items()):
            if (code := launch.process.poll()) is not None:
                del self.running[run]
                self._report(run, code, launch.log)

    def _report(self, run: Run, code: int, log: Path) -> None:
        result = {0: "finished", STOPPED: "stopped; repeat the command to resume it"}.get(code)
        if result is None:
            result = f"failed with exit code {code}: {run.folder.path}, {log}: {_last_line(log)}"
            self.failed[run] = result
        print(f"{run.name}: {result}", file=sys.stderr, flush=True)

    def _stop_all(self) -> None:
        """Stop all runs with a checkpoint each; terminate those that have not started training."""
        for run, launch in self.running.items():
            stop = subprocess.run([command("fmfsd-launch"), "stop", str(run.folder.path)], capture_output=True)
            if stop.returncode:
                launch.process.terminate()
        for run, launch in self.running.items():
            self._report(run, _wait_for(launch.process), launch.log)
        self.running.clear()


def _wait_for(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process and return its exit code; 75 also for one that ended before it had anything to save."""
    try:
        code = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return STOPPED if code in (INTERRUPTED, TERMINATED) else code


def read_notes(path: Path) -> dict[str, Any]:
    """Return the notes by run name; empty if there is no file."""
    with suppress(OSError, ValueError):
        return read_json(path)
    return {}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
