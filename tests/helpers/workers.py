"""Runs a function as several real workers that talk to one another; a second or less, as torch is loaded once."""

import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fmfsd.distributed.collectives import connect
from fmfsd.distributed.world import World

DEADLINE_S = 180.0

_context = get_context("forkserver")  # spawn imports torch for each worker: 3.7 s a test, against 0.3 s
_context.set_forkserver_preload(["torch", "torch._dynamo", "fmfsd.training.trainer"])  # an optimizer imports _dynamo


def run_workers(function: Callable[..., Any], size: int, *args: Any, nodes: int = 1) -> list[Any]:
    """`function(comms, *args)` on `size` workers, as if on so many nodes; results by rank. A worker's error is raised
    with its traceback."""
    local = size // nodes
    with tempfile.TemporaryDirectory() as folder:
        pairs = [_context.Pipe(duplex=False) for _ in range(size)]
        processes = []
        for rank, (_, sending) in enumerate(pairs):
            world = World(rank, size, rank % local, local, rank // local, f"file://{folder}/meet")
            processes.append(_context.Process(target=_work, args=(sending, function, world, args)))
            processes[-1].start()
            sending.close()
        try:
            answers = [_answer(receiving) for receiving, _ in pairs]
        finally:
            for process in processes:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()
                process.close()
    for answer in answers:
        if isinstance(answer, _Failure):
            raise AssertionError(answer.text)
    return answers


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _answer(receiving: Connection) -> Any:
    with receiving:
        try:
            waited = receiving.poll(DEADLINE_S)
            return pickle.loads(receiving.recv_bytes()) if waited else _Failure(f"no answer in {DEADLINE_S} s")
        except EOFError:
            return _Failure("a worker ended without a word")


def _work(sending: Connection, function: Callable[..., Any], world: World, args: tuple[Any, ...]) -> None:
    import os

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    try:
        with connect(world, torch.device("cpu"), timeout_s=120) as comms:
            answer = function(comms, *args)
    except BaseException:
        answer = _Failure(f"rank {world.rank}: {traceback.format_exc()}")
    sending.send_bytes(pickle.dumps(answer))  # by value: `send` would share a tensor's memory, which ends with us


def scratch_run(folder: Path, rank: int) -> Path:
    """A folder of one worker's own, for what all workers would otherwise write to."""
    own = folder / f"rank-{rank}"
    own.mkdir(parents=True, exist_ok=True)
    return own
