"""Twelve short trials by `fmfsd-tune` and by a hand-written Ray Tune script, each measured as a separate process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.plan.launch_plan import MALLOC_SETTINGS
from launcher.run_dir.sweep_dir import SweepDir
from tests.benchmarks.usage import cpu_seconds, idle_share, sample_until_exit
from tests.helpers.processes import command

VALUES = {"distill.alpha": (0.1, 0.3, 0.5, 0.7), "distill.temperature": (1.0, 3.0, 6.0)}
TRIALS = 12


@dataclass(frozen=True)
class Stamps:
    """Times of one trial, in seconds since 1970: its start, the end of its first step, its end."""

    start: float
    first_step: float
    end: float


@dataclass(frozen=True)
class SweepMeasurement:
    """One sweep: seconds in all (`whole`), from the command to the first step (`first`), and from a trial's end to the
    next first step (`overheads`); idle share of the cores; CPU seconds of all processes."""

    whole: float
    first: float
    overheads: Sequence[float]
    idle: float
    cpu_s: float


def ours(folder: Path, config: str, changes: Sequence[str]) -> SweepMeasurement:
    space = folder / "space.yaml"
    lines = [f"  {key}: {{grid: {json.dumps(values)}}}" for key, values in VALUES.items()]
    space.write_text("\n".join([f"config: {config}", f"trials: {TRIALS}", "parameters:", *lines, ""]))
    overrides = [part for change in (*changes, "train.log_every=1 step") for part in ("--set", change)]
    sweep = SweepDir(folder / "sweep")
    argv = [command("fmfsd-tune"), "--space", str(space), *overrides, "--device", "cpu", "--sweep-dir", str(sweep.path)]
    return _measure(argv, folder, {}, lambda: (_stamps_of(RunDir(path)) for path in sweep.trials.iterdir()))


def by_hand(folder: Path, config: str, changes: Sequence[str]) -> SweepMeasurement:
    own = folder / "peer"
    values = [f"{key}={json.dumps(values)}" for key, values in VALUES.items()]
    argv = [sys.executable, "-m", "tests.benchmarks.sweep_peer", str(own), config, *changes, *values]
    env = {"RAY_USAGE_STATS_ENABLED": "0", **MALLOC_SETTINGS}
    return _measure(
        argv, folder, env, lambda: (Stamps(**json.loads(path.read_text())) for path in (own / "stamps").iterdir())
    )


def _measure(
    argv: Sequence[str], folder: Path, more: Mapping[str, str], stamps: Callable[[], Iterable[Stamps]]
) -> SweepMeasurement:
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    cores, start = len(os.sched_getaffinity(0)), time.time()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(argv, env={**free, **more}, stdout=log, stderr=log)
        samples = sample_until_exit(process)
    whole = time.time() - start
    assert process.returncode == 0, (argv, (folder / "log").read_text())
    trials = list(stamps())
    assert len(trials) == TRIALS, trials
    firsts, ends = sorted(each.first_step for each in trials), sorted(each.end for each in trials)
    overheads = [first - end for end, first in zip(ends, firsts[cores:], strict=False)]
    idle = idle_share(samples, min(each.start for each in trials), ends[-1], cores)
    return SweepMeasurement(whole, firsts[0] - start, overheads, idle, cpu_seconds(samples))


def _stamps_of(run: RunDir) -> Stamps:
    """Return the times of a run with one attempt whose metrics have a record per step."""
    attempt, record = read_json(run.attempt(1)), json.loads(run.metrics.read_text().partition("\n")[0])
    assert record["step"] == 1, record
    first_step = read_json(run.manifest)["started"] + record["time"]
    return Stamps(attempt["started"], first_step, attempt["ended"])
