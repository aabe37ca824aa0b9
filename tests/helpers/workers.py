"""Run a function on several real workers with working collectives. Takes a second or less: torch is preloaded."""

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

from fmfsd.distributed.process_group import join_process_group
from fmfsd.distributed.world import World

DEADLINE_S = 180.0

_context = get_context("forkserver")  # spawn imports torch for each worker: 3.7 s a test, against 0.3 s
_context.set_forkserver_preload(["torch", "torch._dynamo", "fmfsd.training.trainer"])  # an optimizer imports _dynamo


def run_workers(function: Callable[..., Any], size: int, *args: Any, nodes: int = 1) -> list[Any]:
    """Run `function(comms, *args)` on `size` workers, spread over `nodes` simulated nodes; return the results by rank.

    Raise AssertionError with the traceback of the first rank that failed.
    """
    local = size // nodes
    with tempfile.TemporaryDirectory() as folder:
        pairs = [_context.Pipe(duplex=False) for _ in range(size)]
        processes = []
        for rank, (_, sending) in enumerate(pairs):
            world = World(rank, size, rank % local, local, rank // local, f"file://{folder}/meet")
            processes.append(_context.Process(target=_run_worker, args=(sending, function, world, args)))
            processes[-1].start()
            sending.close()
        try:
            results = [_receive_result(receiving) for receiving, _ in pairs]
        finally:
            for process in processes:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()
                process.close()
    for result in results:
        if isinstance(result, _Failure):
            raise AssertionError(result.text)
    return results


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _receive_result(receiving: Connection) -> Any:
    with receiving:
        try:
            is_ready = receiving.poll(DEADLINE_S)
            return pickle.loads(receiving.recv_bytes()) if is_ready else _Failure(f"no answer in {DEADLINE_S} s")
        except EOFError:
            return _Failure("a worker ended without a result")


def _run_worker(sending: Connection, function: Callable[..., Any], world: World, args: tuple[Any, ...]) -> None:
    import os

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    try:
        with join_process_group(world, torch.device("cpu"), timeout_s=120) as comms:
            result = function(comms, *args)
    except BaseException:
        result = _Failure(f"rank {world.rank}: {traceback.format_exc()}")
    sending.send_bytes(
        pickle.dumps(result)
    )  # by value: `send` would share a tensor's memory, which ends with this process


def scratch_run(folder: Path, rank: int) -> Path:
    """Create and return a folder for one worker only, for files that all workers would otherwise write."""
    rank_folder = folder / f"rank-{rank}"
    rank_folder.mkdir(parents=True, exist_ok=True)
    return rank_folder
