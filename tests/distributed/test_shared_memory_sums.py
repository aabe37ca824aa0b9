"""Workers of one host add up through memory that they share, and are told when one of them does not come."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from fmfsd.cpu import cpp_extension
from fmfsd.cpu.shared_memory_sums import _created, _mapped, shared_sums
from fmfsd.distributed.collectives import Comms
from tests.helpers.runs import make_run, newest_weights, records, tiny_config, train_run
from tests.helpers.workers import run_workers

LENGTHS = (0, 1, 7, 65_536, 65_537, 300_001)
"""Up to one slot of floats, and beyond one and several."""
SUMS = [(length, dtype) for dtype in (torch.float32, torch.float64) for length in LENGTHS]


def part(rank: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(100 * rank + length), dtype=dtype)


def add_up(comms: Comms) -> list[torch.Tensor]:
    assert comms.shares_memory
    return [comms.sum_(part(comms.rank, *each)) for each in SUMS]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_have_the_sum_of_parts_by_rank_to_the_last_bit(size: int) -> None:
    """With more workers than cores too."""
    found = run_workers(add_up, size)
    for place, (length, dtype) in enumerate(SUMS):
        expected = part(0, length, dtype)
        for rank in range(1, size):
            expected += part(rank, length, dtype)
        assert all(torch.equal(sums[place], expected) for sums in found)


def mean_of_parts(comms: Comms) -> torch.Tensor:
    return comms.mean_(part(comms.rank, 100, torch.float32))


@pytest.mark.parametrize("nodes", [1, 3], ids=["memory", "network"])
def test_a_mean_is_one_of_all_workers(nodes: int) -> None:
    expected = torch.stack([part(rank, 100, torch.float32) for rank in range(3)]).mean(dim=0)
    for found in run_workers(mean_of_parts, 3, nodes=nodes):
        torch.testing.assert_close(found, expected)


def add_up_what_memory_does_not_take(comms: Comms) -> list[torch.Tensor]:
    ones = torch.ones(2, 3, dtype=torch.float64)
    return [comms.sum_(each) for each in (torch.tensor([comms.rank, 1]), torch.ones(2, dtype=torch.bfloat16), ones.t())]


def test_other_tensors_are_added_up_as_well() -> None:
    expected = [torch.tensor([1, 2]), torch.full((2,), 2, dtype=torch.bfloat16), torch.full((3, 2), 2.0).double()]
    for found in run_workers(add_up_what_memory_does_not_take, 2):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def wait_for_one_that_ends(comms: Comms, folder: Path) -> None:
    """Rank 1 is killed, and the others write down what they are told of it, and after how many seconds."""
    pid = comms.gather(os.getpid())[1]
    if comms.rank == 1:
        time.sleep(60)
    if comms.rank == 0:
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        comms.sum_(torch.ones(3))
    (folder / f"{comms.rank}").write_text(f"{time.monotonic() - start} {caught.value}")


def test_the_others_hear_at_once_that_a_worker_has_ended(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a worker ended without a word"):
        run_workers(wait_for_one_that_ends, 3, tmp_path)
    for rank in (0, 2):
        took_s, _, told = (tmp_path / f"{rank}").read_text().partition(" ")
        assert told == "another worker's process has ended: rank 1"
        assert float(took_s) < 10


def wait_for_one_that_does_not_come(comms: Comms, folder: Path) -> str:
    with comms.within(0.5) as near:
        if comms.rank == 1:
            while not (folder / "told").exists():
                time.sleep(0.01)
            return ""
        start = time.monotonic()
        with pytest.raises(RuntimeError) as caught:
            near.sum_(torch.ones(3))
        assert 0.5 <= time.monotonic() - start < 10
        (folder / "told").touch()
    return str(caught.value)


def test_nobody_is_waited_for_longer_than_the_time_for_it(tmp_path: Path) -> None:
    told = ["timed out waiting for rank 1, after 0.5 s", ""]
    assert run_workers(wait_for_one_that_does_not_come, 2, tmp_path) == told


def add_up_unlike_things(comms: Comms) -> str:
    with pytest.raises(RuntimeError) as caught:
        comms.sum_(torch.ones(3 + comms.rank))
    return str(caught.value)


def test_workers_that_do_not_add_up_the_same_are_told() -> None:
    told = [f"tensor sizes differ: rank {1 - rank} and rank {rank} add up different tensors" for rank in range(2)]
    assert run_workers(add_up_unlike_things, 2) == told


def begin_without(comms: Comms, what: str, rank: int) -> bool:
    """Whether there is a way through memory where worker `rank` has no compiler, or can have no such file."""
    if comms.rank == rank and what == "compiler":
        cpp_extension.library = lambda *names: None  # type: ignore[assignment]
    if comms.rank == rank and what == "file":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return shared_sums(comms, timeout_s=5) is not None


@pytest.mark.parametrize(("what", "rank"), [("compiler", 0), ("compiler", 1), ("file", 0)])
def test_what_one_worker_cannot_do_is_done_by_none(what: str, rank: int) -> None:
    assert run_workers(begin_without, 2, what, rank) == [False, False]


def test_what_all_can_do_is_done() -> None:
    assert run_workers(begin_without, 2, "compiler", 2) == [True, True]


def test_only_a_file_of_that_name_is_mapped() -> None:
    """Numbers of a process and a file may be those of others, on another host."""
    created = _created(100)
    assert created is not None
    file, name = created
    try:
        assert _mapped(100, os.getpid(), file, name) is not None
        assert _mapped(100, os.getpid(), file, "fmfsd-other") is None
        assert _mapped(100, os.getpid(), 0, name) is None
    finally:
        os.close(file)


def shares_memory(comms: Comms) -> bool:
    assert not comms.any(False)
    return comms.shares_memory


def test_workers_of_several_nodes_share_none() -> None:
    assert run_workers(shares_memory, 2, nodes=2) == [False, False]


@pytest.mark.parametrize("changes", [(), ("model.sync_bn=false",), ("train.micro_batch=16",)], ids=str)
def test_two_workers_train_the_same_through_memory_and_over_a_network(
    changes: tuple[str, ...], tiny_root: Path, tmp_path: Path
) -> None:
    sizes = ("data.shards=16", "train.batch=32", "train.max_steps=3")
    config = tiny_config(tiny_root, *sizes, "train.log_every=1 step", *changes)
    near, far = (make_run(tmp_path / name, config) for name in ("near", "far"))
    run_workers(train_run, 2, near.path)
    run_workers(train_run, 2, far.path, nodes=2)
    assert records(near) == records(far)
    assert newest_weights(near) == newest_weights(far)
