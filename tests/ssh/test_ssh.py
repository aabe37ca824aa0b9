"""Runs on two hosts with their own network namespaces, reached by a real sshd from this machine."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.cluster import Cluster
from tests.helpers.faulty import Moment, inject_fault
from tests.helpers.processes import start_launch, wait_until
from tests.helpers.runs import assert_records_agree, newest_weights, read_records

ON_BOTH = ("--hosts", "n1,n2", "--gpus", "1", "--device", "cpu")
COMMANDS = ("launcher.agent", "fmfsd train", "torch.distributed.run")


@pytest.fixture(autouse=True)
def nothing_is_left_on_hosts(hosts: Cluster) -> Iterator[None]:
    yield
    wait_until(lambda: not remaining_processes(hosts), "the end of all processes on the hosts", deadline_s=5)


def remaining_processes(hosts: Cluster) -> list[int]:
    return [pid for host in ("n1", "n2") for pid in hosts.processes(host, *COMMANDS)]


def assert_same(run: RunDir, whole: RunDir) -> None:
    assert newest_weights(run) == newest_weights(whole)
    assert_records_agree(read_records(run), read_records(whole), tolerance=0)


def attempt(run: RunDir, number: int) -> dict[str, Any]:
    return dict(json.loads(run.attempt(number).read_text()))


SPECIAL_CHARACTERS = "a b'c\"d$(touch canary)`touch canary`;e\nf\\ü*"


def write_variable(moment: Moment) -> None:
    if moment.step == 1:
        Path(os.environ["WHERE"], f"rank-{moment.rank}").write_text(os.environ["ODD"])


def test_two_hosts_train_like_two_local_workers_and_special_characters_are_passed_unchanged(
    hosts: Cluster, unknown_names: tuple[str, str], arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    """Through torchrun too, names and values reach the workers unchanged. The hosts are reached at second addresses, by
    names that they do not resolve."""
    place = tmp_path / SPECIAL_CHARACTERS.replace("\n", " ")
    place.mkdir()
    fault = inject_fault(tmp_path / "fault", write_variable)
    env_options = ("--env", f"ODD={SPECIAL_CHARACTERS}", "--env", f"WHERE={place}", "--starter", "torchrun")
    host_options = ("--hosts", ",".join(unknown_names), "--interface", "eth0", *ON_BOTH[2:])
    with hosts.start_launch(
        place, SPECIAL_CHARACTERS.replace("\n", " "), (*arguments, *env_options, *host_options), env=fault.env
    ) as run:
        code, output = run.wait_for_end()
    assert code == 0, output
    assert [node["host"] for node in attempt(run.run, 1)["nodes"]] == ["n1", "n2"]
    assert [(place / f"rank-{rank}").read_text() for rank in (0, 1)] == [SPECIAL_CHARACTERS, SPECIAL_CHARACTERS]
    assert not list(tmp_path.rglob("canary*"))
    assert_same(run.run, whole)


def hold_then_wait_for_stop_in_attempt_2(moment: Moment) -> None:
    """Hold at step 10. Rank 0, the only rank that polls the stop request, waits there for it in the next attempt, so
    that the run does not finish before."""
    from time import sleep

    if moment.attempt_rank_step == (1, 1, 10):
        moment.hold()
    if moment.attempt_rank_step == (2, 0, 10):
        moment.mark_reached()
        while not moment.loop.stop.requested:
            sleep(0.02)


@pytest.mark.fault("F5")
def test_a_killed_agent_costs_one_attempt_and_a_stop_saves_a_checkpoint(
    hosts: Cluster, arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    """The stopped run is finished on this machine, with the result of an undisturbed run."""
    fault = inject_fault(tmp_path / "fault", hold_then_wait_for_stop_in_attempt_2)
    with hosts.start_launch(tmp_path, "run", (*arguments, *ON_BOTH), env=fault.env) as run:
        wait_until(fault.hold_marker(attempt=1, rank=1).exists, "step 10")
        wait_until(lambda: run.run.newest_step() == 8, "checkpoint 8")
        hosts.run_on("n2", "kill", "-9", str(attempt(run.run, 1)["nodes"][1]["agent_pid"]))
        wait_until(fault.hold_marker(attempt=2, rank=0).exists, "step 10 again")
        run.signal(signal.SIGTERM)
        code, output = run.wait_for_end()
    assert (code, run.run.last_attempt()) == (75, 2), output
    assert "node 1: its agent is gone" in attempt(run.run, 1)["cause"]
    with start_launch(tmp_path, "run", (*arguments, "--nodes", "2", "--gpus", "1")) as again:
        assert again.wait_for_end()[0] == 0
    assert_same(again.run, whole)


@pytest.mark.fault("F6")
def test_a_killed_launcher_leaves_nothing_on_any_host(
    hosts: Cluster, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """No agents and no workers; workers write a heartbeat before they import torch."""
    with hosts.start_launch(tmp_path, "run", (*arguments, *ON_BOTH)) as run:
        wait_until(lambda: run.progress(0) and run.progress(1), "a heartbeat of each worker")
        assert remaining_processes(hosts)
        run.signal(signal.SIGKILL)
    wait_until(lambda: not remaining_processes(hosts), "the end of all processes on the hosts", deadline_s=5)


def hold_at_step_10(moment: Moment) -> None:
    if moment.attempt_rank_step == (1, 1, 10):
        moment.hold()


@pytest.mark.fault("F7")
def test_after_a_network_cut_an_elastic_run_continues_without_that_host(
    hosts: Cluster, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """The disconnected side exits by itself; no process of it is left when the network is back."""
    fault = inject_fault(tmp_path / "fault", hold_at_step_10)
    with hosts.start_launch(tmp_path, "run", (*arguments, *ON_BOTH, "--elastic", "1:2"), env=fault.env) as run:
        wait_until(fault.hold_marker(attempt=1, rank=1).exists, "step 10")
        wait_until(lambda: run.run.newest_step() == 8, "checkpoint 8")
        cut_at = time.time()
        hosts.run_script("link", "n2", "down")
        try:
            code, output = run.wait_for_end()
        finally:
            hosts.run_script("link", "n2", "up")
    assert code == 0, output
    assert "resuming with 1 workers on 1" in output
    first = attempt(run.run, 1)
    print(f"detected after {first['noticed'] - cut_at:.1f} s")
    assert first["noticed"] - cut_at < 25
    wait_until(lambda: not remaining_processes(hosts), "the end of the disconnected side", deadline_s=70)


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (("--hosts", "n1,n9"), 3, "n9: no agent could be started there: ssh: Could not resolve hostname n9"),
        (
            ("--hosts", "stranger@n1,n2"),
            3,
            "stranger@n1: no agent could be started there: stranger@n1: Permission denied (publickey",
        ),
        (
            ("--hosts", "nobody@n1,n2"),
            3,
            "nobody@n1: no agent could be started there: This account is currently not available.",
        ),
        (("--hosts", "n1,n1"), 2, "--hosts: n1 is listed twice"),
        (("--hosts", "n1,n2", "--nodes", "3"), 2, "--nodes: 3 requested, 2 available: n1, n2"),
        (("--hosts", "n1,-oProxyCommand=x"), 2, "--hosts: '-oProxyCommand=x' is not a valid host name"),
        (("--on", "ssh"), 2, "--on ssh: no hosts given: name them with --hosts or --hostfile"),
    ],
)
def test_problems_with_hosts_are_reported_before_anything_is_started(
    options: tuple[str, ...], code: int, expected: str, hosts: Cluster, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with hosts.start_launch(tmp_path, "run", (*arguments, *options)) as run:
        exit_code, output = run.wait_for_end()
    assert exit_code == code
    assert expected in output
    assert not run.run.path.exists()


def test_an_interface_that_others_do_not_reach_is_named(
    hosts: Cluster, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with hosts.start_launch(tmp_path, "run", (*arguments, *ON_BOTH, "--interface", "lo")) as run:
        code, output = run.wait_for_end()
    assert code == 1
    assert "node 1: it can't reach n1 at 127.0.0.1:" in output
