"""Many trials that do nothing, by the search's own processes: what each of these has after so many, and how long they
take. In place of a trial's run there is a result at once; what a winner can do on the test set is not asked.

Run as `python -m tests.benchmarks.sweep_noop WHAT ...`: WHAT is `tune` with the words of fmfsd-tune, or what starts the
driver that it wants.
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
LOOK_S = 0.1
WHO = {"coordinator": "sweep_noop tune", "driver": "sweep_noop drive", "trial's actor": "ray::"}


@dataclass(frozen=True)
class Seen:
    """After `trials` of them, at `time`: MiB and open files by process, the most of those of a kind."""

    trials: int
    time: float
    memory: Mapping[str, float]
    files: Mapping[str, int]


def looked_at(folder: Path, data_root: str, trials: int, at: tuple[int, ...]) -> Iterator[Seen]:
    """While a search of so many goes on."""
    space, sweep = folder / "space.yaml", SweepDir(folder / "sweep")
    space.write_text(SPACE.format(trials=trials))
    argv = [sys.executable, "-m", "tests.benchmarks.sweep_noop", "tune", "--space", str(space), "--device", "cpu"]
    given = ["--set", f"data.root={data_root}", "--sweep-dir", str(sweep.path)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*argv, *given], stdout=log, stderr=log)
        wanted = list(at)
        while process.poll() is None:
            if wanted and (ended := _ended(sweep)) >= wanted[0]:
                del wanted[0]
                yield _seen(process.pid, ended)
            time.sleep(LOOK_S)
    assert process.returncode == 0, (folder / "log").read_text()


def _ended(sweep: SweepDir) -> int:
    return sweep.ledger.read_bytes().count(b'"fact":"ended"') if sweep.ledger.exists() else 0


def _seen(root: int, ended: int) -> Seen:
    now = time.time()
    pids = {who: [pid for pid in tree(root) if word in command_of(pid)] for who, word in WHO.items()}
    memory = {who: max(map(memory_MiB, found)) for who, found in pids.items()}
    return Seen(ended, now, memory, {who: max(map(open_files, found)) for who, found in pids.items()})


def _tune() -> int:
    """fmfsd-tune whose driver is ours."""
    from launcher.cli.tune import main
    from launcher.tune.coordinator import Coordination

    started = Coordination._driver
    ours = (sys.executable, "-m", "tests.benchmarks.sweep_noop", "drive")

    def driver(self: Coordination, machines: int) -> tuple[str, ...]:
        whole = started(self, machines)
        return (*ours, *whole[whole.index("launcher.tune.driver.driver") + 1 :])

    Coordination._driver = driver  # type: ignore[method-assign]
    main()
    return 0


def _drive() -> int:
    """The driver, with trials that are over at once."""
    from launcher.tune.driver import driver, ray_tuner
    from tests.benchmarks.sweep_noop_trial import Nothing

    setattr(ray_tuner, "Trial", Nothing)  # noqa: B010
    setattr(driver, "test_winners", lambda *_, **__: None)  # noqa: B010
    return driver.main(sys.argv[1:], os.environ)


if __name__ == "__main__":
    _what = sys.argv.pop(1)
    raise SystemExit(_tune() if _what == "tune" else _drive())
