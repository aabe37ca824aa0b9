"""A worker's first and last acts, before torch is imported and after the training: ties, log file, crash file."""

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

from fmfsd.distributed.affinity import Cores, parse_cores, stay_on_share
from fmfsd.distributed.world import World
from fmfsd.errors import ConfigError, FmfsdError, Problem
from fmfsd.run.heartbeat import ProgressFile
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from fmfsd.system.parent_death import tie_to_parent
from fmfsd.training.attempt_fence import Fence

if TYPE_CHECKING:
    import torch

    from fmfsd.training.profile import Profile

DUMP_SIGNAL = signal.SIGUSR2
"""Makes a worker write every thread's Python stack into its log, even in the midst of a hanging call."""


@dataclass(frozen=True)
class Circumstances:
    """What the starter told this worker by its environment.

    `agent` is the process that must be alive above this one, two levels up if a starter is between; None for a worker
    that somebody started by hand. `attempt` counts the starts of the run, None by hand; with `log_to_file`, output goes
    to the rank's log. Workers wait for one another for `timeout_s` seconds. The workers of a node share `cores`, unless
    that is None. With `preflight` they try themselves and one another out before they train; `traced` ones write what
    each step was made from and came to; with `profiled_steps`, where so many of them go.
    """

    world: World
    attempt: int | None = None
    agent: int | None = None
    has_starter: bool = True
    log_to_file: bool = False
    timeout_s: float = 120.0
    cores: Cores | None = None
    preflight: bool = False
    traced: bool = False
    profiled_steps: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Circumstances":
        agent, attempt = environment.get("FMFSD_AGENT_PID"), environment.get("FMFSD_ATTEMPT")
        cores = environment.get("FMFSD_CORES")
        return cls(
            world=World.from_environment(environment),
            attempt=int(attempt) if attempt else None,
            agent=int(agent) if agent else None,
            has_starter=environment.get("FMFSD_STARTER") != "direct",
            log_to_file=environment.get("FMFSD_LOG_TO_FILE") == "1",
            timeout_s=float(environment.get("FMFSD_COLLECTIVE_TIMEOUT_S", cls.timeout_s)),
            cores=parse_cores(cores) if cores else None,
            preflight=environment.get("FMFSD_PREFLIGHT") == "1",
            traced=environment.get("FMFSD_TRACE") == "1",
            profiled_steps=int(environment.get("FMFSD_PROFILE", cls.profiled_steps)),
        )


def redirect_output(run: RunDir, world: World, attempt: int) -> None:
    """Send stdout and stderr to the rank's log, that of libraries in C included."""
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


MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)
"""What a bug in Python raises. A RuntimeError may be torch's, an OSError the machine's."""


def write_crash(run: RunDir, world: World, attempt: int, error: BaseException) -> None:
    """Leave word of what ended this worker, whole, for whoever asks for the first cause."""
    content = {
        "rank": world.rank,
        "node": world.node,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "step": _last_step(run, world.rank),
        "type": type(error).__name__,
        "message": str(error),
        "expected": isinstance(error, FmfsdError),
        "resumable": getattr(error, "resumable", True),
        "worth_another_attempt": _worth_another_attempt(error),
        "traceback": "".join(traceback.format_exception(error)),
        "in_our_code": in_our_code(error),
    }
    write_json(run.crash(attempt, world.rank), content)


def in_our_code(error: BaseException) -> bool:
    """Whether `error` is one of a program's own mistakes, and was raised by a line of this package."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, MISTAKES) and bool(frames) and Path(__file__).parent in Path(frames[-1].filename).parents


def _worth_another_attempt(error: BaseException) -> bool:
    """Of our own errors each kind says so; a GPU whose memory was too small will be again."""
    unknown = not isinstance(error, FmfsdError) and type(error).__name__ != "OutOfMemoryError"
    return bool(getattr(error, "worth_another_attempt", unknown))


def _last_step(run: RunDir, rank: int) -> int | None:
    try:
        return int(read_json(run.rank_progress(rank))["step"])
    except (OSError, ValueError, KeyError):
        return None


def work(run_dir: Path, device: str, circumstances: Circumstances) -> int:
    """Train as the worker that `circumstances` describe; the exit code, 0 also after a stop on request."""
    os.umask(0o077)
    tie_to_parent(circumstances.agent, has_starter=circumstances.has_starter)
    run, world = RunDir(run_dir), circumstances.world
    if not run.config.exists():
        raise ConfigError([Problem(str(run.config), "missing, so this is no run directory")])
    run.create()
    attempt = circumstances.attempt or max(1, run.last_attempt())
    if circumstances.log_to_file:
        redirect_output(run, world, attempt)
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if circumstances.cores is not None:
        stay_on_share(circumstances.cores, world)
    try:
        with ProgressFile(run.rank_progress(world.rank), rank=world.rank, attempt=attempt) as progress:
            state = _train(run, device, circumstances, progress, Fence(run, attempt))
    except Exception as error:
        logging.exception("this worker failed")
        write_crash(run, world, attempt, error)
        return error.exit_code if isinstance(error, FmfsdError) else 1
    logging.info("%s", state)
    return 0


def _train(run: RunDir, device: str, circumstances: Circumstances, progress: ProgressFile, fence: Fence) -> str:
    """Imports torch, which is not to be done before this process is tied to its parent and has a pulse."""
    from fmfsd.training.trainer import choose_device, train

    world, chosen = circumstances.world, choose_device(device, circumstances.world)
    return train(
        run,
        world,
        chosen,
        progress,
        fence,
        timeout_s=circumstances.timeout_s,
        preflight=circumstances.preflight,
        traced=circumstances.traced,
        profile=_profile(run, circumstances, chosen),
    )


def _profile(run: RunDir, circumstances: Circumstances, device: "torch.device") -> "Profile | None":
    """Return the profile to write, or None. The profiler is imported only if it is used."""
    if not circumstances.profiled_steps:
        return None
    from fmfsd.profiling.profile import WrittenProfile

    return WrittenProfile(run, circumstances.world.rank, device, circumstances.profiled_steps)
