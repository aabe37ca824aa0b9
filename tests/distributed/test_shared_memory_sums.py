"""All-reduce through shared memory between the workers of one host, and its errors when a worker is missing."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from fmfsd.cpu import cpp_extension
from fmfsd.cpu.shared_memory_sums import _create_memory_file, _map_memory_file, open_shared_memory_sums
from fmfsd.distributed.collectives import Comms
from tests.helpers.runs import make_run, newest_weights, read_records, tiny_config, train_run
from tests.helpers.workers import run_workers

LENGTHS = (0, 1, 7, 65_536, 65_537, 300_001)
"""Lengths of up to one slot of floats, of slightly more than one slot, and of several slots."""
CASES = [(length, dtype) for dtype in (torch.float32, torch.float64) for length in LENGTHS]


def part(rank: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(100 * rank + length), dtype=dtype)


def all_reduce_each(comms: Comms) -> list[torch.Tensor]:
    assert comms.uses_shared_memory
    return [comms.all_reduce_(part(comms.rank, *each)) for each in CASES]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_workers_get_the_sum_in_rank_order_bit_for_bit(size: int) -> None:
    """This holds with more workers than cores, too."""
    results = run_workers(all_reduce_each, size)
    for index, (length, dtype) in enumerate(CASES):
        expected = part(0, length, dtype)
        for rank in range(1, size):
            expected += part(rank, length, dtype)
        assert all(torch.equal(sums[index], expected) for sums in results)


def mean_of_parts(comms: Comms) -> torch.Tensor:
    return comms.all_reduce_mean_(part(comms.rank, 100, torch.float32))


@pytest.mark.parametrize("nodes", [1, 3], ids=["memory", "network"])
def test_a_mean_covers_all_workers(nodes: int) -> None:
    expected = torch.stack([part(rank, 100, torch.float32) for rank in range(3)]).mean(dim=0)
    for result in run_workers(mean_of_parts, 3, nodes=nodes):
        torch.testing.assert_close(result, expected)


def all_reduce_unsupported_tensors(comms: Comms) -> list[torch.Tensor]:
    ones = torch.ones(2, 3, dtype=torch.float64)
    return [
        comms.all_reduce_(each)
        for each in (torch.tensor([comms.rank, 1]), torch.ones(2, dtype=torch.bfloat16), ones.t())
    ]


def test_tensors_that_shared_memory_does_not_support_are_summed_as_well() -> None:
    expected = [torch.tensor([1, 2]), torch.full((2,), 2, dtype=torch.bfloat16), torch.full((3, 2), 2.0).double()]
    for result in run_workers(all_reduce_unsupported_tensors, 2):
        assert all(torch.equal(one, other) for one, other in zip(result, expected, strict=True))


def wait_for_a_killed_worker(comms: Comms, folder: Path) -> None:
    """Rank 1 is killed; the others write the seconds until their error, and its message, to files."""
    pid = comms.all_gather_object(os.getpid())[1]
    if comms.rank == 1:
        time.sleep(60)
    if comms.rank == 0:
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        comms.all_reduce_(torch.ones(3))
    (folder / f"{comms.rank}").write_text(f"{time.monotonic() - start} {caught.value}")


def test_the_other_workers_fail_at_once_when_a_worker_ends(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a worker ended without a result"):
        run_workers(wait_for_a_killed_worker, 3, tmp_path)
    for rank in (0, 2):
        took_s, _, message = (tmp_path / f"{rank}").read_text().partition(" ")
        assert message == "another worker's process has ended: rank 1"
        assert float(took_s) < 10


def wait_for_a_missing_worker(comms: Comms, folder: Path) -> str:
    with comms.with_timeout(0.5) as group:
        if comms.rank == 1:
            while not (folder / "timed-out").exists():
                time.sleep(0.01)
            return ""
        start = time.monotonic()
        with pytest.raises(RuntimeError) as caught:
            group.all_reduce_(torch.ones(3))
        assert 0.5 <= time.monotonic() - start < 10
        (folder / "timed-out").touch()
    return str(caught.value)


def test_a_missing_worker_is_waited_for_only_until_the_timeout(tmp_path: Path) -> None:
    messages = ["timed out waiting for rank 1, after 0.5 s", ""]
    assert run_workers(wait_for_a_missing_worker, 2, tmp_path) == messages


def all_reduce_different_lengths(comms: Comms) -> str:
    with pytest.raises(RuntimeError) as caught:
        comms.all_reduce_(torch.ones(3 + comms.rank))
    return str(caught.value)


def test_workers_that_sum_different_shapes_get_an_error() -> None:
    messages = [f"tensor sizes differ: rank {1 - rank} and rank {rank} add up different tensors" for rank in range(2)]
    assert run_workers(all_reduce_different_lengths, 2) == messages


def starts_shared_sums(comms: Comms, missing: str, rank: int) -> bool:
    """Return whether shared-memory sums start although `rank` lacks a compiler or can't create such a file."""
    if comms.rank == rank and missing == "compiler":
        cpp_extension.load_library = lambda *names: None  # type: ignore[assignment]
    if comms.rank == rank and missing == "file":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return open_shared_memory_sums(comms, timeout_s=5) is not None


@pytest.mark.parametrize(("missing", "rank"), [("compiler", 0), ("compiler", 1), ("file", 0)])
def test_shared_memory_is_not_used_if_one_worker_cannot_use_it(missing: str, rank: int) -> None:
    assert run_workers(starts_shared_sums, 2, missing, rank) == [False, False]


def test_shared_memory_is_used_if_all_workers_can_use_it() -> None:
    assert run_workers(starts_shared_sums, 2, "compiler", 2) == [True, True]


def test_only_a_file_with_the_expected_name_is_mapped() -> None:
    """On another host the same pid and file descriptor may belong to another process and file."""
    created = _create_memory_file(100)
    assert created is not None
    file, name = created
    try:
        assert _map_memory_file(100, os.getpid(), file, name) is not None
        assert _map_memory_file(100, os.getpid(), file, "fmfsd-other") is None
        assert _map_memory_file(100, os.getpid(), 0, name) is None
    finally:
        os.close(file)


def shares_memory(comms: Comms) -> bool:
    assert not comms.any(False)
    return comms.uses_shared_memory


def test_workers_of_several_nodes_share_no_memory() -> None:
    assert run_workers(shares_memory, 2, nodes=2) == [False, False]


@pytest.mark.parametrize("changes", [(), ("model.sync_bn=false",), ("train.micro_batch=16",)], ids=str)
def test_two_workers_train_the_same_through_memory_and_over_a_network(
    changes: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    sizes = ("data.shards=16", "train.batch=32", "train.max_steps=3")
    config = tiny_config(tiny_root, *sizes, "train.log_every=1 step", *changes)
    by_memory, by_network = (make_run(tmp_path / name, config) for name in ("memory", "network"))
    run_workers(train_run, 2, by_memory.path)
    run_workers(train_run, 2, by_network.path, nodes=2)
    assert read_records(by_memory) == read_records(by_network)
    assert newest_weights(by_memory) == newest_weights(by_network)
