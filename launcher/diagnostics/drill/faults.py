"""The faults of a drill: what each does, once, to a run under way."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import free_space, read_json
from launcher.config.launch_config import LaunchConfig
from launcher.transport.isolation import CuttableNetwork, lacks, mount_small_disk

FILLER = "filler"
DISK_OF_CHECKPOINTS = 6
DISK_MORE_BYTES = 1 << 20


class Injector:
    """Does `harm` to `run` once `step` steps are done and a checkpoint is there, and observes what follows.

    `harm` returns what it was done to. `look` is called ten times a second.
    """

    def __init__(self, run: RunDir, harm: Callable[[], str], *, step: int) -> None:
        self._run, self._harm, self._step = run, harm, step
        self._attempt = 0
        self.what = ""
        self.at: float | None = None
        """When the harm was done, in seconds since 1970; None: not yet."""
        self.reached = 0
        """Steps that were known to be done then."""
        self.warned: float | None = None
        self.back: float | None = None
        """When a worker first warned, and when a later attempt first made a step."""

    def look(self) -> None:
        shown = self._shown()
        if self.at is None:
            if shown.get("step", 0) >= self._step and self._run.newest_step() is not None:
                self.reached, self._attempt = shown["step"], shown["attempt"]
                self.at, self.what = time.time(), self._harm()
        elif self.warned is None and shown.get("warnings"):
            self.warned = time.time()
            (self._run.checkpoints / FILLER).unlink(missing_ok=True)
        elif self.back is None and self._is_at_work_again(shown):
            self.back = time.time()

    @property
    def noticed_s(self) -> float | None:
        """From the fault until the coordinator noticed it or a worker warned."""
        noticed = self.warned or read_json(self._run.attempt(self._attempt))["noticed"]
        return None if noticed is None or self.at is None else noticed - self.at

    @property
    def back_s(self) -> float | None:
        """From the fault until a later attempt had made a step."""
        return None if self.back is None or self.at is None else self.back - self.at

    @property
    def lost_steps(self) -> int:
        """Those that the next attempt did again; 0 if there was none, or it went on after later ones."""
        shown = self._shown()
        return max(0, self.reached - shown["went_on_after"]) if shown["attempt"] > self._attempt else 0

    def _is_at_work_again(self, shown: dict[str, Any]) -> bool:
        return shown.get("attempt", 0) > self._attempt and shown["step"] > (shown.get("went_on_after") or 0)

    def _shown(self) -> dict[str, Any]:
        try:
            return read_json(self._run.rank_progress(0))
        except (OSError, ValueError):
            return {}


@dataclass
class Scene:
    """A run that is to be harmed, and what surrounds it. `checkpoint_bytes` is what one of its checkpoints takes."""

    run: RunDir
    chance: random.Random
    checkpoint_bytes: int
    network: CuttableNetwork | None = None


@dataclass(frozen=True)
class Fault:
    """`harm` returns what it was done to; `lacks` says why it can't be done here; `prepare` makes the scene for it."""

    harm: Callable[[Scene], str]
    lacks: Callable[[LaunchConfig, int], str] = lambda _launch, _checkpoint_bytes: ""
    prepare: Callable[[Scene], None] = lambda _scene: None


def _preempt(_scene: Scene) -> str:
    """What a scheduler does that wants the machine back."""
    os.kill(os.getpid(), signal.SIGTERM)
    return "launcher: SIGTERM"


def _signal_worker(scene: Scene, *, number: signal.Signals) -> str:
    worker = read_json(scene.chance.choice(sorted(scene.run.progress.glob("rank-*.json"))))
    os.kill(worker["pid"], number)
    return f"rank {worker['rank']}: {number.name}"


def _kill_agent(scene: Scene) -> str:
    node = scene.chance.choice(_nodes(scene.run))
    os.kill(node["agent_pid"], signal.SIGKILL)
    return f"agent {node['node']}: SIGKILL"


def _fill_disk(scene: Scene) -> str:
    """So that half a checkpoint still fits; the filler goes once a worker has warned."""
    folder = scene.run.checkpoints
    with (folder / FILLER).open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(1, free_space(folder)[0] - scene.checkpoint_bytes // 2))
    return "disk: full"


def _disk_bytes(checkpoint_bytes: int) -> int:
    return DISK_OF_CHECKPOINTS * checkpoint_bytes + DISK_MORE_BYTES


def _lacks_disk(_launch: LaunchConfig, checkpoint_bytes: int) -> str:
    """The disk is memory, and will be full."""
    needed, free = _disk_bytes(checkpoint_bytes), os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return lacks() or (f"needs {needed >> 19} MiB of free memory" if 2 * needed > free else "")


def _small_disk(scene: Scene) -> None:
    """For the checkpoints alone: logs are to be read when the disk is gone."""
    scene.run.create()
    mount_small_disk(scene.run.checkpoints, _disk_bytes(scene.checkpoint_bytes))


def _cut_link(scene: Scene) -> str:
    assert scene.network is not None
    node = scene.chance.choice(_nodes(scene.run))["node"]
    scene.network.cut(node)
    return f"node {node}: link cut"


def _own_network(scene: Scene) -> None:
    scene.network = CuttableNetwork()


def _lacks_network(launch: LaunchConfig, _checkpoint_bytes: int) -> str:
    return lacks("ip", "nsenter") or ("" if launch.nodes > 1 else "needs --nodes 2 or more")


def _nodes(run: RunDir) -> list[dict[str, Any]]:
    return list(read_json(run.attempt(run.last_attempt()))["nodes"])


FAULTS = {
    "preempt": Fault(_preempt),
    "kill-worker": Fault(partial(_signal_worker, number=signal.SIGKILL)),
    "kill-agent": Fault(_kill_agent),
    "hang": Fault(partial(_signal_worker, number=signal.SIGSTOP)),
    "disk-full": Fault(_fill_disk, lacks=_lacks_disk, prepare=_small_disk),
    "cut-link": Fault(_cut_link, lacks=_lacks_network, prepare=_own_network),
}
