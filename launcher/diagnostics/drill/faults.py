"""The faults of a drill, and their injection into a running training."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fmfsd.errors import ConfigError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import free_space, read_json
from launcher.config.launch_config import LaunchConfig
from launcher.transport.isolation import CuttableNetwork, isolation_problem, mount_small_disk

FILLER = "filler"
DISK_OF_CHECKPOINTS = 6
DISK_MORE_BYTES = 1 << 20


class Injector:
    """Injects a fault once `step` steps are done and a checkpoint exists, and observes the consequences.

    `inject` returns its target. `poll` is called ten times a second.
    """

    def __init__(self, run: RunDir, inject: Callable[[], str], *, step: int) -> None:
        self._run, self._inject, self._step = run, inject, step
        self._attempt = 0
        self._step_at_fault = 0
        self.target = ""
        self.at: float | None = None
        """Time of the fault in seconds since 1970; None before it."""
        self._warned_at: float | None = None
        self._recovered_at: float | None = None
        """Times of a worker's first warning, and of the first step of a later attempt."""

    def poll(self) -> None:
        progress = self._progress()
        if self.at is None:
            if progress.get("step", 0) >= self._step and self._run.newest_step() is not None:
                self._step_at_fault, self._attempt = progress["step"], progress["attempt"]
                self.at, self.target = time.time(), self._inject()
        elif self._warned_at is None and progress.get("warnings"):
            self._warned_at = time.time()
            (self._run.checkpoints / FILLER).unlink(missing_ok=True)
        elif self._recovered_at is None and self._trains_again(progress):
            self._recovered_at = time.time()

    @property
    def noticed_s(self) -> float | None:
        """Return the seconds until the coordinator noticed the fault; if it did not, until a worker warned."""
        noticed = read_json(self._run.attempt(self._attempt))["noticed"] or self._warned_at
        return None if noticed is None or self.at is None else noticed - self.at

    @property
    def recovered_s(self) -> float | None:
        """Return the seconds from the fault until a later attempt had made a step."""
        return None if self._recovered_at is None or self.at is None else self._recovered_at - self.at

    @property
    def lost_steps(self) -> int:
        """Return the number of steps that the next attempt repeated."""
        progress = self._progress()
        return max(0, self._step_at_fault - progress["went_on_after"]) if progress["attempt"] > self._attempt else 0

    def _trains_again(self, progress: dict[str, Any]) -> bool:
        return progress.get("attempt", 0) > self._attempt and progress["step"] > (progress.get("went_on_after") or 0)

    def _progress(self) -> dict[str, Any]:
        try:
            return read_json(self._run.rank_progress(0))
        except (OSError, ValueError):
            return {}


@dataclass
class Scene:
    """A run and its surroundings, into which a fault is injected. `checkpoint_bytes` is the size of one checkpoint."""

    run: RunDir
    rng: random.Random
    checkpoint_bytes: int
    network: CuttableNetwork | None = None


@dataclass(frozen=True)
class Fault:
    """`inject` returns its target; `missing` returns why the fault is impossible here; `prepare` sets up the scene."""

    inject: Callable[[Scene], str]
    missing: Callable[[LaunchConfig, int], str] = lambda _launch, _checkpoint_bytes: ""
    prepare: Callable[[Scene], None] = lambda _scene: None


def _preempt(_scene: Scene) -> str:
    """Do what a scheduler does to preempt a job."""
    os.kill(os.getpid(), signal.SIGTERM)
    return "launcher: SIGTERM"


def _signal_worker(scene: Scene, *, number: signal.Signals) -> str:
    worker = read_json(scene.rng.choice(sorted(scene.run.progress.glob("rank-*.json"))))
    os.kill(worker["pid"], number)
    return f"rank {worker['rank']}: {number.name}"


def _kill_agent(scene: Scene) -> str:
    node = scene.rng.choice(_nodes(scene.run))
    os.kill(node["agent_pid"], signal.SIGKILL)
    return f"agent {node['node']}: SIGKILL"


def _fill_disk(scene: Scene) -> str:
    """Leave room for half a checkpoint; the filler is removed after a worker's first warning."""
    folder = scene.run.checkpoints
    with (folder / FILLER).open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(1, free_space(folder)[0] - scene.checkpoint_bytes // 2))
    return "disk: full"


def _disk_bytes(checkpoint_bytes: int) -> int:
    return DISK_OF_CHECKPOINTS * checkpoint_bytes + DISK_MORE_BYTES


def _missing_for_disk(_launch: LaunchConfig, checkpoint_bytes: int) -> str:
    """The small disk is a tmpfs, so it needs memory."""
    needed, free = _disk_bytes(checkpoint_bytes), os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return isolation_problem() or (f"needs {needed >> 19} MiB of free memory" if 2 * needed > free else "")


def _small_disk(scene: Scene) -> None:
    """Mount the small disk for checkpoints only, so that logs remain readable."""
    scene.run.create()
    mount_small_disk(scene.run.checkpoints, _disk_bytes(scene.checkpoint_bytes))


def _cut_link(scene: Scene) -> str:
    assert scene.network is not None
    node = scene.rng.choice(_nodes(scene.run))["node"]
    scene.network.cut(node)
    return f"node {node}: link cut"


def _own_network(scene: Scene) -> None:
    scene.network = CuttableNetwork()


def _missing_for_network(launch: LaunchConfig, _checkpoint_bytes: int) -> str:
    return isolation_problem("ip", "nsenter") or ("" if launch.nodes > 1 else "needs --nodes 2 or more")


def _nodes(run: RunDir) -> list[dict[str, Any]]:
    return list(read_json(run.attempt(run.last_attempt()))["nodes"])


FAULTS = {
    "preempt": Fault(_preempt),
    "kill-worker": Fault(partial(_signal_worker, number=signal.SIGKILL)),
    "kill-agent": Fault(_kill_agent),
    "hang": Fault(partial(_signal_worker, number=signal.SIGSTOP)),
    "disk-full": Fault(_fill_disk, missing=_missing_for_disk, prepare=_small_disk),
    "cut-link": Fault(_cut_link, missing=_missing_for_network, prepare=_own_network),
}


def parse_faults(text: str) -> tuple[str, ...]:
    """Read comma-separated names of faults, or `all`. ConfigError for unknown names."""
    names = tuple(FAULTS) if text == "all" else tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in FAULTS]:
        found = ", ".join(map(ascii, unknown))
        raise ConfigError(f"drill: unknown fault {found}: choose from {', '.join(FAULTS)}, or all")
    return names
