"""A worker killed by the kernel at the memory limit of its cgroup: reported as out of memory, not as a user's kill."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from fmfsd.config import load_config
from tests.helpers.faulty import Moment, inject_fault
from tests.helpers.launches import cache_costs, tiny_arguments
from tests.helpers.processes import command, run_command, start_launch, wait_until

ROOT = Path("/sys/fs/cgroup")
MORE_BYTES = 128 << 20
"""Memory that the group may use in addition once the workers train."""


@dataclass(frozen=True)
class Group:
    """A memory control group; the names of its `usage` and `limit` files differ between cgroup v1 and v2."""

    folder: Path
    usage: str
    limit: str

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def members(self) -> set[int]:
        return set(map(int, (self.folder / "cgroup.procs").read_text().split()))

    def allow(self, more: int) -> None:
        """Set the limit to `more` bytes above the current usage."""
        used = int((self.folder / self.usage).read_text())
        (self.folder / self.limit).write_text(str(used + more))

    def remove(self) -> bool:
        """Try to remove the group; return whether it is gone."""
        with suppress(OSError):
            self.folder.rmdir()
        return not self.folder.exists()


@pytest.fixture
def group() -> Iterator[Group]:
    name = f"fmfsd-test-{os.getpid()}"
    if (ROOT / "memory").is_dir():
        group = Group(ROOT / "memory" / name, "memory.usage_in_bytes", "memory.limit_in_bytes")
    else:
        group = Group(ROOT / name, "memory.current", "memory.max")
    try:
        group.folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (group.folder / group.limit).exists():
            pytest.skip(f"{ROOT}: memory is not controlled here")
        yield group
    finally:
        wait_until(group.remove, "the end of the control group", deadline_s=10)


LIMIT_BYTES = 128 << 20
"""Enough for the launcher, too little for a worker of smoke."""


@pytest.mark.fault("F9")
def test_a_control_group_too_small_for_a_worker_is_reported_before_the_start(group: Group, tmp_path: Path) -> None:
    """A worker's memory was estimated before, as torch, which estimates it, would not fit either."""
    cache_costs(load_config("smoke", []), 1)
    assert run_command("fmfsd-launch", "smoke", "--check", cwd=tmp_path).returncode == 0
    (group.folder / group.limit).write_text(str(LIMIT_BYTES))
    inside = f'echo $$ > {group.folder}/cgroup.procs && exec "$@"'
    check = ["sh", "-c", inside, "sh", command("fmfsd-launch"), "smoke", "--check"]
    answer = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 3, answer.stderr
    assert re.fullmatch(
        r"memory: a worker needs at least 1\d\d MiB, \d+ MiB of it for activations; its machine has 128 MiB for it: "
        r"by these figures train.micro_batch 64 \(which is another run\) would fit\n",
        answer.stderr,
    ), answer.stderr


def allocates_more_and_more_memory(moment: Moment) -> None:
    """Allocate memory on rank 1 in small parts, so that the heartbeat can record the peak."""
    from time import sleep

    if moment.attempt_rank_step == (1, 1, 2):
        moment.hold()
        chunks = []
        for _ in range(64):
            chunks.append(b"x" * (32 << 20))
            sleep(0.1)


@pytest.mark.fault("F9")
def test_an_out_of_memory_kill_is_reported_with_the_memory_size(group: Group, tiny_root: Path, tmp_path: Path) -> None:
    """The kernel may have killed rank 0 as well, before the memory of rank 1 was free."""
    fault = inject_fault(tmp_path / "fault", allocates_more_and_more_memory)
    tiny = tiny_arguments(tiny_root, "data.shards=16", "train.batch=16")
    arguments = (*tiny, "--gpus", "2", "--max-restarts", "0")
    with start_launch(tmp_path, "run", arguments, env=fault.env) as run:
        group.add(run.process.pid)
        wait_until(fault.hold_marker(attempt=1, rank=1).exists, "rank 1 at its step")
        run.wait_for_step(2, ranks=2)
        assert {run.worker(rank).pid for rank in (0, 1)} <= group.members()
        group.allow(MORE_BYTES)
        fault.release()
        code, output = run.wait_for_end()
    assert code == 1, output
    cause = json.loads(run.run.outcome.read_text())["cause"]
    size = re.search(
        r"rank 1 \(pid \d+ on \S+\) after step 2: killed by SIGKILL: out of memory, at (\d+\.\d\d) GiB", cause
    )
    assert size is not None, cause
    assert 0.2 < float(size[1]) < 2
    assert any(line.endswith(cause) for line in output.splitlines())
    assert "likely to help: more workers with a GPU or a machine each" in output
