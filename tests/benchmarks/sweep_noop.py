"""A sweep of many trials without training: memory and open files of its processes after a number of trials, and time.

Each trial has a result at once instead of a run, and the winners are not tested.

Run as `python -m tests.benchmarks.sweep_noop PART ...`: PART is `tune` with the arguments of fmfsd-tune, or `drive`,
with which `tune` starts the driver.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.run_dir.sweep_dir import SweepDir
from tests.benchmarks.usage import command_of, memory_MiB, open_files, tree

SPACE = """\
config: smoke
trials: {trials}
parameters:
  distill.alpha: {{uniform: [0.0, 0.9]}}
  distill.temperature: {{uniform: [1.0, 6.0]}}
"""
POLL_S = 0.1
PROCESSES = {"coordinator": "sweep_noop tune", "driver": "sweep_noop drive", "trial's actor": "ray::"}


@dataclass(frozen=True)
class Usage:
    """Largest MiB and number of open files per kind of process, after `trials` trials, at `time`."""

    trials: int
    time: float
    memory: Mapping[str, float]
    files: Mapping[str, int]


def sample_sweep(folder: Path, data_root: str, trials: int, at: tuple[int, ...]) -> Iterator[Usage]:
    """Run a sweep of `trials` trials; yield the usage each time a number of `at` has ended."""
    space, sweep = folder / "space.yaml", SweepDir(folder / "sweep")
    space.write_text(SPACE.format(trials=trials))
    argv = [sys.executable, "-m", "tests.benchmarks.sweep_noop", "tune", "--space", str(space), "--device", "cpu"]
    options = ["--set", f"data.root={data_root}", "--sweep-dir", str(sweep.path)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*argv, *options], stdout=log, stderr=log)
        remaining = list(at)
        while process.poll() is None:
            if remaining and (ended := _count_ended(sweep)) >= remaining[0]:
                del remaining[0]
                yield _usage(process.pid, ended)
            time.sleep(POLL_S)
    assert process.returncode == 0, (folder / "log").read_text()


def _count_ended(sweep: SweepDir) -> int:
    return sweep.ledger.read_bytes().count(b'"fact":"ended"') if sweep.ledger.exists() else 0


def _usage(root: int, ended: int) -> Usage:
    now = time.time()
    pids = {
        process_name: [pid for pid in tree(root) if marker in command_of(pid)]
        for process_name, marker in PROCESSES.items()
    }
    memory = {process_name: max(map(memory_MiB, those)) for process_name, those in pids.items()}
    return Usage(
        ended, now, memory, {process_name: max(map(open_files, those)) for process_name, those in pids.items()}
    )


def _tune() -> int:
    """Run fmfsd-tune with the driver below."""
    from launcher.cli.tune_command import main
    from launcher.tune.coordinator import SweepCoordinator

    original_driver = SweepCoordinator._driver_argv
    replacement = (sys.executable, "-m", "tests.benchmarks.sweep_noop", "drive")

    def driver(self: SweepCoordinator, machines: int) -> tuple[str, ...]:
        command = original_driver(self, machines)
        return (*replacement, *command[command.index("launcher.tune.driver.driver") + 1 :])

    SweepCoordinator._driver_argv = driver  # type: ignore[method-assign]
    main()
    return 0


def _drive() -> int:
    """Run the sweep driver with trials that finish at once."""
    from launcher.tune.driver import driver, ray_tuner
    from tests.benchmarks.sweep_noop_trial import NoopTrial

    setattr(ray_tuner, "TrialActor", NoopTrial)  # noqa: B010
    setattr(driver, "evaluate_winners", lambda *_, **__: None)  # noqa: B010
    return driver.main(sys.argv[1:], os.environ)


if __name__ == "__main__":
    _part = sys.argv.pop(1)
    raise SystemExit(_tune() if _part == "tune" else _drive())
