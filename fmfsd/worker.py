"""Start and end of a worker process: settings from the environment, log file, training, crash report.

Torch is imported only after the process is tied to its parent and writes heartbeats.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmfsd.distributed.affinity import Cores, parse_cores, pin_to_cores
from fmfsd.distributed.world import World
from fmfsd.errors import ConfigError, FmfsdError, Problem
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from fmfsd.system.parent_death import die_with_parent
from fmfsd.training.attempt_fence import AttemptFence

if TYPE_CHECKING:
    import torch

    from fmfsd.training.profile_hook import Profile

DUMP_SIGNAL = signal.SIGUSR2
"""Makes a worker write every thread's Python stack into its log, even during a call that hangs."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of this worker, which the launcher passes in environment variables.

    `agent` is the process id of the node's agent, which must be the parent, or the grandparent if a starter (torchrun,
    DeepSpeed's launcher) is in between; None for a worker started by hand. `attempt` is the number of the run's start;
    None for a worker started by hand. With `log_to_file`, output goes to the rank's log. `timeout_s` is the timeout of
    collectives in seconds. The workers of a node share `cores`; None: no CPU affinity. With `preflight`, workers check
    their results and their communication before training; with `trace`, they write the samples, gradients and losses
    of each step; with `profile_steps`, they profile that number of steps.
    """

    world: World
    attempt: int | None = None
    agent: int | None = None
    has_starter: bool = True
    log_to_file: bool = False
    timeout_s: float = 120.0
    cores: Cores | None = None
    preflight: bool = False
    trace: bool = False
    profile_steps: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "WorkerSettings":
        agent, attempt = environment.get("FMFSD_AGENT_PID"), environment.get("FMFSD_ATTEMPT")
        cores = environment.get("FMFSD_CORES")
        return WorkerSettings(
            world=World.from_environment(environment),
            attempt=int(attempt) if attempt else None,
            agent=int(agent) if agent else None,
            has_starter=environment.get("FMFSD_STARTER") != "direct",
            log_to_file=environment.get("FMFSD_LOG_TO_FILE") == "1",
            timeout_s=float(environment.get("FMFSD_COLLECTIVE_TIMEOUT_S", cls.timeout_s)),
            cores=parse_cores(cores) if cores else None,
            preflight=environment.get("FMFSD_PREFLIGHT") == "1",
            trace=environment.get("FMFSD_TRACE") == "1",
            profile_steps=int(environment.get("FMFSD_PROFILE", cls.profile_steps)),
        )


def redirect_output(run: RunDir, world: World, attempt: int) -> None:
    """Redirect stdout and stderr to the rank's log, including output of C libraries."""
    path = run.rank_log(world.node, world.rank)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
    print(
        f"--- attempt {attempt}, rank {world.rank} of {world.size}, pid {os.getpid()} on {socket.gethostname()}",
        flush=True,
    )


BUG_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)
"""Exceptions that indicate a bug in Python code. A RuntimeError may come from torch, an OSError from the machine."""


def write_crash_report(run: RunDir, world: World, attempt: int, error: BaseException) -> None:
    """Write the crash report of this worker, from which the coordinator finds the first cause of a failure."""
    content = {
        "rank": world.rank,
        "node": world.node,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "step": _read_last_step(run, world.rank),
        "type": type(error).__name__,
        "message": str(error),
        "expected": isinstance(error, FmfsdError),
        "resumable": getattr(error, "resumable", True),
        "worth_another_attempt": _is_worth_another_attempt(error),
        "traceback": "".join(traceback.format_exception(error)),
        "in_our_code": is_fmfsd_bug(error),
    }
    write_json(run.crash_report(attempt, world.rank), content)


def is_fmfsd_bug(error: BaseException) -> bool:
    """Return whether `error` indicates a bug and was raised by a line of this package."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, BUG_ERRORS) and bool(frames) and Path(__file__).parent in Path(frames[-1].filename).parents


def _is_worth_another_attempt(error: BaseException) -> bool:
    """Return whether a restart may succeed: as the class of our own errors states; not if GPU memory ran out."""
    default = not isinstance(error, FmfsdError) and type(error).__name__ != "OutOfMemoryError"
    return bool(getattr(error, "worth_another_attempt", default))


def _read_last_step(run: RunDir, rank: int) -> int | None:
    try:
        return int(read_json(run.rank_progress(rank))["step"])
    except (OSError, ValueError, KeyError):
        return None


def run_worker(run_dir: Path, device: str, settings: WorkerSettings) -> int:
    """Train as the worker that `settings` describe. Return the exit code, which is 0 after a requested stop too."""
    os.umask(0o077)
    die_with_parent(settings.agent, has_starter=settings.has_starter)
    run, world = RunDir(run_dir), settings.world
    if not run.config.exists():
        raise ConfigError([Problem(str(run.config), "missing: expected a run directory")])
    run.create()
    attempt = settings.attempt or max(1, run.last_attempt())
    if settings.log_to_file:
        redirect_output(run, world, attempt)
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if settings.cores is not None:
        pin_to_cores(settings.cores, world)
    try:
        with HeartbeatFile(run.rank_progress(world.rank), rank=world.rank, attempt=attempt) as progress:
            state = _train(run, device, settings, progress, AttemptFence(run, attempt))
    except Exception as error:
        logging.exception("this worker failed")
        write_crash_report(run, world, attempt, error)
        return error.exit_code if isinstance(error, FmfsdError) else 1
    logging.info("%s", state)
    return 0


def _train(run: RunDir, device: str, settings: WorkerSettings, progress: HeartbeatFile, fence: AttemptFence) -> str:
    """Train and return the final state of the run.

    Imports torch, so it runs only after this process is tied to its parent and writes heartbeats.
    """
    from fmfsd.training.trainer import choose_device, train

    world, torch_device = settings.world, choose_device(device, settings.world)
    return train(
        run,
        world,
        torch_device,
        progress,
        fence,
        timeout_s=settings.timeout_s,
        preflight=settings.preflight,
        traced=settings.trace,
        profile=_profile(run, settings, torch_device),
    )


def _profile(run: RunDir, settings: WorkerSettings, device: "torch.device") -> "Profile | None":
    """Return the profile to write, or None. The profiler is imported only if it is used."""
    if not settings.profile_steps:
        return None
    from fmfsd.profiling.profiler import ProfileWriter

    return ProfileWriter(run, settings.world.rank, device, settings.profile_steps)
