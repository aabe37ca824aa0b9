"""A worker that the kernel kills because its memory control group is full: told as that, and not as a kill by hand."""

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
from tests.helpers.faulty import Moment, faulty
from tests.helpers.launches import cache_costs, tiny_arguments
from tests.helpers.processes import command, launched, run_command, wait_until

ROOT = Path("/sys/fs/cgroup")
MORE_BYTES = 128 << 20
"""What the group may still use once the workers train."""


@dataclass(frozen=True)
class Group:
    """A control group, and the names of two of its files, which differ between the versions."""

    folder: Path
    usage: str
    limit: str

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def members(self) -> set[int]:
        return set(map(int, (self.folder / "cgroup.procs").read_text().split()))

    def allow(self, more: int) -> None:
        """So many bytes more than are used now."""
        used = int((self.folder / self.usage).read_text())
        (self.folder / self.limit).write_text(str(used + more))

    def remove(self) -> bool:
        """Whether the kernel has let go of it."""
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
"""The launcher fits into it, and no worker of smoke does."""


@pytest.mark.fault("F9")
def test_a_control_group_that_is_too_small_for_a_worker_is_told_before_one_starts(group: Group, tmp_path: Path) -> None:
    """What a worker needs is known already: torch, which tells it, would not fit either."""
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


def takes_ever_more_memory(moment: Moment) -> None:
    """On rank 1: a part at a time, so that the heartbeat can tell how much it was."""
    from time import sleep

    if moment.at == (1, 1, 2):
        moment.hold()
        taken = []
        for _ in range(64):
            taken.append(b"x" * (32 << 20))
            sleep(0.1)


@pytest.mark.fault("F9")
def test_an_out_of_memory_kill_is_told_with_its_size(group: Group, tiny_root: Path, tmp_path: Path) -> None:
    """The kernel may have killed rank 0 as well, before the memory of rank 1 was free."""
    fault = faulty(tmp_path / "fault", takes_ever_more_memory)
    tiny = tiny_arguments(tiny_root, "data.shards=16", "train.batch=16")
    arguments = (*tiny, "--gpus", "2", "--max-restarts", "0")
    with launched(tmp_path, "run", arguments, env=fault.env) as run:
        group.add(run.process.pid)
        wait_until(fault.held(attempt=1, rank=1).exists, "rank 1 at its step")
        run.wait_for_step(2, ranks=2)
        assert {run.worker(rank).pid for rank in (0, 1)} <= group.members()
        group.allow(MORE_BYTES)
        fault.go()
        code, output = run.end()
    assert code == 1, output
    cause = json.loads(run.run.outcome.read_text())["cause"]
    size = re.search(
        r"rank 1 \(pid \d+ on \S+\) after step 2: killed by SIGKILL: out of memory, at (\d+\.\d\d) GiB", cause
    )
    assert size is not None, cause
    assert 0.2 < float(size[1]) < 2
    assert any(line.endswith(cause) for line in output.splitlines())
    assert "likely to help: more workers with a GPU or a machine each" in output
