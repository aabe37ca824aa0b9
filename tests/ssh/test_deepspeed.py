"""DeepSpeed's launchers on two hosts: its per-node launcher under our agents, and a user's own `deepspeed` command."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from launcher.plan.starters import DEEPSPEED
from tests.helpers.cluster import Cluster
from tests.helpers.deepspeed import needs_deepspeed
from tests.helpers.processes import command, wait_until
from tests.helpers.runs import SMALL, make_run, newest_weights, read_records, tiny_config

HOSTFILE = "n1 slots=1\nn2 slots=1\n"

pytestmark = needs_deepspeed


@pytest.fixture(autouse=True)
def nothing_is_left_on_hosts(hosts: Cluster) -> Iterator[None]:
    yield
    wait_until(lambda: not remaining_processes(hosts), "the end of all processes on the hosts", deadline_s=5)


def remaining_processes(hosts: Cluster) -> list[int]:
    parts = ("launcher.agent", DEEPSPEED, "fmfsd train")
    return [pid for host in ("n1", "n2") for part in parts for pid in hosts.processes(host, part)]


def test_two_hosts_with_deepspeeds_launcher_train_like_torchrun_on_one(
    hosts: Cluster, arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    """The first worker listens at the address and port that its agent offered."""
    (tmp_path / "hosts").write_text(HOSTFILE)
    options = ("--hostfile", "hosts", "--device", "cpu", "--starter", "deepspeed")
    with hosts.start_launch(tmp_path, "run", (*arguments, *options)) as run:
        code, output = run.wait_for_end()
    assert code == 0, output
    assert newest_weights(run.run) == newest_weights(whole)
    assert read_records(run.run) == read_records(whole)


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="needs pdsh, with which deepspeed reaches hosts")
def test_a_users_own_deepspeed_command_on_two_hosts_trains_the_same(
    hosts: Cluster, tiny_root: Path, whole: RunDir, tmp_path: Path
) -> None:
    """deepspeed forwards only the variables that it knows, and those in its own file."""
    (tmp_path / "hosts").write_text(HOSTFILE)
    (tmp_path / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    run = make_run(tmp_path / "run", tiny_config(tiny_root, *SMALL))
    deepspeed_options = (
        "--hostfile",
        "hosts",
        "--no_local_rank",
        "--module",
        "fmfsd",
        "train",
        "run",
        "--device",
        "cpu",
    )
    deepspeed = hosts.command("run", command("deepspeed"), *deepspeed_options)
    result = subprocess.run(deepspeed, cwd=tmp_path, env=hosts.env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert newest_weights(run) == newest_weights(whole)
    assert read_records(run) == read_records(whole)
