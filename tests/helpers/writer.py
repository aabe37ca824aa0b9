"""Save checkpoints, each in a forked process that a test may kill: `python -m tests.helpers.writer`.

A fork of this process, which has imported torch, takes 10 ms instead of 3 s. Each line of stdin is a checkpoint folder.
For each one, the fork prints its pid, waits for another line of stdin, saves step 2 and, if it survives, prints the
result. Then the parent prints the fork's exit code and an empty line.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import NoReturn

import torch

from fmfsd.checkpoint import Checkpoint, CheckpointStore
from fmfsd.engine.interface import EngineState
from fmfsd.errors import FmfsdError
from fmfsd.run.train_position import TrainPosition

PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, ctypes.c_ulong(-1)


def open_store(folder: Path) -> CheckpointStore:
    """Return a store of at most one checkpoint, so that a save also deletes one."""
    return CheckpointStore(folder, keep=1, check_fence=lambda: None)


def make_checkpoint(step: int) -> Checkpoint:
    weights, momentum = (torch.arange(6.0).reshape(2, 3) * step + offset for offset in (0.5, 0.25))
    state = EngineState({"conv.weight": weights}, {"conv.weight.momentum_buffer": momentum})
    return Checkpoint(TrainPosition(step), state, {"records": step})


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            _save(Path(line.rstrip("\n")))
        _print(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")


def _save(folder: Path) -> NoReturn:
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)  # Yama lets only ancestors trace; strace is none
    _print(str(os.getpid()))
    if not sys.stdin.readline():
        os._exit(1)
    try:
        open_store(folder).write(make_checkpoint(2))
        _print("saved")
    except FmfsdError as error:
        _print(f"{type(error).__name__}: {error}")
    except BaseException as error:
        _print(f"not ours: {error!r}")
    os._exit(0)


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
