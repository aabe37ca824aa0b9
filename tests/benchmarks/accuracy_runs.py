"""The runs of an accuracy benchmark: what each is, and several at a time until all have ended."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmfsd.config import RunConfig, changes, load_config, preset_names
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.agent.parent_death import tied
from launcher.agent.resources import Resources, driver
from launcher.resources.cost_probe import costs_of
from tests.helpers.processes import command

MILESTONES = (66 / 200, 133 / 200, 190 / 200)
"""Of a run's length; the method's recipe."""
OTHERWISE = "cifar100-resnet18"
"""The preset whose recipe a backbone or a set without one of its own gets."""
LENGTH = ("train.epochs", "train.max_steps")
"""What a run may be changed in when it goes on, and a result may not."""
STOPPED = 75
INTERRUPTED, TERMINATED = 130, 143
LOOK_S, ENDS_S = 0.1, 300.0
CONTEXT_BYTES, MARGIN = 1 << 30, 1.5
"""What CUDA and its libraries take for themselves, and how much more than the probe says a run may take."""


@dataclass(frozen=True)
class Asked:
    """What is compared; `settings` are overrides for all."""

    backbone: str
    dataset: str
    methods: tuple[str, ...]
    seeds: int
    epochs: int | None
    root: Path
    out: Path
    settings: tuple[str, ...] = ()

    def runs(self) -> list["Run"]:
        """Seed by seed, so that a piece of them compares all methods."""
        return [Run(self, method, seed) for seed in range(self.seeds) for method in self.methods]

    @property
    def source(self) -> str:
        preset = f"{self.dataset}-{self.backbone}"
        return preset if preset in preset_names() else OTHERWISE


@dataclass(frozen=True)
class Run:
    """One method with one seed."""

    asked: Asked
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.asked.dataset}-{self.asked.backbone.replace('/', '-')}-{self.method}-{self.seed}"

    @property
    def folder(self) -> RunDir:
        return RunDir(self.asked.out.absolute() / self.name)

    @property
    def overrides(self) -> list[str]:
        asked = self.asked
        changes = [f"data.name={asked.dataset}", f"model.backbone={asked.backbone}", f"method={self.method}"]
        changes += [f"seed={self.seed}", f"data.root={asked.root.absolute()}"]
        return [*changes, *(recipe(asked.epochs) if asked.epochs else ()), *asked.settings]

    @property
    def words(self) -> list[str]:
        return [*(word for change in self.overrides for word in ("--set", change)), "--", self.asked.source]

    def config(self) -> RunConfig:
        """ConfigError with all that is wrong."""
        return load_config(self.asked.source, self.overrides)

    def outcome(self) -> dict[str, Any]:
        """Empty if it has not ended yet."""
        with suppress(OSError, ValueError):
            return read_json(self.folder.outcome)
        return {}

    @property
    def is_finished(self) -> bool:
        """And was the run that is asked for, not one of the same name."""
        if self.outcome().get("state") != "finished":
            return False
        made = load_config(str(self.folder.config))
        return not any(change.key in LENGTH or not change.is_allowed for change in changes(made, self.config()))


def recipe(epochs: int) -> list[str]:
    """The method's milestones for a run of so many epochs; those of a short one that fall together are one."""
    points = sorted({round(share * epochs) for share in MILESTONES} - {0, epochs})
    return [f"train.epochs={epochs}", f"optim.milestones={points}"]


def packed_on(free_bytes: int, needed_bytes: int, cores: int) -> int:
    """How many runs that need as much fit beside one another on a GPU; two cores for each."""
    fits = free_bytes // (round(MARGIN * needed_bytes) + CONTEXT_BYTES)
    return max(1, min(fits, cores // 2))


def at_a_time(runs: Sequence[Run], environment: Mapping[str, str]) -> int:
    """On this machine: on each GPU what has room, by the largest of the runs' probes; on a CPU one."""
    here = Resources.detect(environment)
    if not here.gpus:
        return 1
    largest = {run.method: run for run in runs}.values()
    needed = [costs_of(run.config(), run.words, workers=1, environment=environment) for run in largest]
    most = max(cost.memory.get("total", 0) for cost in needed)
    free = min((gpu.free for gpu in driver().gpus), default=0)
    return len(here.gpus) * packed_on(free, most, here.cores // len(here.gpus)) if most else len(here.gpus)


@dataclass(frozen=True)
class Started:
    """A launch at work, the GPU that it has, and where its words go."""

    process: subprocess.Popen[bytes]
    gpu: str
    log: Path


@dataclass
class Bench:
    """Works through `waiting`, `packed` runs at a time; starts none when `out_of_time`, and then stops the others.

    `notes` keeps of each run how many others were at work beside it, at most, and on what `hardware`.
    """

    waiting: list[Run]
    packed: int
    out_of_time: Callable[[], bool]
    notes: Path
    hardware: str
    gpus: Sequence[str] = ()
    running: dict[Run, Started] = field(default_factory=dict)
    failed: dict[Run, str] = field(default_factory=dict)

    def work(self) -> None:
        """Until nothing is left to do, or no time to do it in."""
        try:
            while self.running or (self.waiting and not self.out_of_time()):
                if self.waiting and len(self.running) < self.packed and not self.out_of_time():
                    self._start(self.waiting.pop(0))
                    continue
                if self.out_of_time():
                    return
                self._look()
                time.sleep(LOOK_S)
        finally:
            self._stop_all()

    def _start(self, run: Run) -> None:
        """On the GPU with the fewest; it ends with us, however that happens."""
        busy = [started.gpu for started in self.running.values()]
        gpu = min(self.gpus, key=busy.count, default="")
        log, (*settings, dashes, source) = self.notes.with_name(f"{run.name}.log"), run.words
        own = ("--gpus", "1", "--run-dir", str(run.folder.path), dashes, source)
        with log.open("ab") as said:
            process = subprocess.Popen(
                tied([command("fmfsd-launch"), *settings, *own]),
                env={**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self.running[run] = Started(process, gpu, log)
        self._note()
        print(f"{run.name}: started", file=sys.stderr, flush=True)

    def _note(self) -> None:
        """Of those at work now."""
        known, others = notes_in(self.notes), len(self.running) - 1
        for run in self.running:
            most = max(others, known.get(run.name, {}).get("beside", 0))
            known[run.name] = {"beside": most, "hardware": self.hardware}
        write_json(self.notes, known)

    def _look(self) -> None:
        for run, started in list(self.running.items()):
            if (code := started.process.poll()) is not None:
                del self.running[run]
                self._ended(run, code, started.log)

    def _ended(self, run: Run, code: int, log: Path) -> None:
        words = {0: "finished", STOPPED: "stopped, to go on with the same command"}.get(code)
        if words is None:
            words = f"failed with exit code {code}: {run.folder.path}, {log}: {_last_line(log)}"
            self.failed[run] = words
        print(f"{run.name}: {words}", file=sys.stderr, flush=True)

    def _stop_all(self) -> None:
        """With a checkpoint each; one that has not begun yet ends at once."""
        for run, started in self.running.items():
            asked = subprocess.run([command("fmfsd-launch"), "stop", str(run.folder.path)], capture_output=True)
            if asked.returncode:
                started.process.terminate()
        for run, started in self.running.items():
            self._ended(run, _end_of(started.process), started.log)
        self.running.clear()


def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; 75 too of one that was ended before it had anything to save."""
    try:
        code = process.wait(ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return STOPPED if code in (INTERRUPTED, TERMINATED) else code


def notes_in(path: Path) -> dict[str, Any]:
    """By run; empty if there are none."""
    with suppress(OSError, ValueError):
        return read_json(path)
    return {}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
