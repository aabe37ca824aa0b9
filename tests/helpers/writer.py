"""Saves checkpoints, each in a process of its own that may die of it: `python -m tests.helpers.writer`.

That process is forked by this one, which has loaded torch: 10 ms instead of 3 s. For each line of stdin, the folder of
the checkpoints, it says its id, waits for another line, saves step 2 and, if it lives, says what came of it. Its exit
code and an empty line follow.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import NoReturn

import torch

from fmfsd.checkpoint import CheckpointFolder, Saved
from fmfsd.engine.interface import EngineState
from fmfsd.errors import FmfsdError
from fmfsd.run.train_position import Position

PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, ctypes.c_ulong(-1)


def checkpoints(folder: Path) -> CheckpointFolder:
    """One checkpoint stays, so that a save also removes one."""
    return CheckpointFolder(folder, keep=1, require_ours=lambda: None)


def saved(step: int) -> Saved:
    weights, momentum = (torch.arange(6.0).reshape(2, 3) * step + offset for offset in (0.5, 0.25))
    state = EngineState({"conv.weight": weights}, {"conv.weight.momentum_buffer": momentum})
    return Saved(Position(step), state, {"records": step})


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            _save(Path(line.rstrip("\n")))
        _say(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")


def _save(folder: Path) -> NoReturn:
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)  # Yama lets only ancestors trace; strace is none
    _say(str(os.getpid()))
    if not sys.stdin.readline():
        os._exit(1)
    try:
        checkpoints(folder).write(saved(2))
        _say("saved")
    except FmfsdError as error:
        _say(f"{type(error).__name__}: {error}")
    except BaseException as error:
        _say(f"not ours: {error!r}")
    os._exit(0)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
