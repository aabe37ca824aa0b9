"""Runs on two hosts with networks of their own, reached by a real sshd from a third: this machine."""

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
from tests.helpers.faulty import Moment, faulty
from tests.helpers.processes import launched, wait_until
from tests.helpers.runs import assert_records_agree, newest_weights, records

ON_BOTH = ("--hosts", "n1,n2", "--gpus", "1", "--device", "cpu")
OURS = ("launcher.agent", "fmfsd train", "torch.distributed.run")


@pytest.fixture(autouse=True)
def nothing_is_left_on_hosts(hosts: Cluster) -> Iterator[None]:
    yield
    wait_until(lambda: not left(hosts), "the end of all processes on the hosts", deadline_s=5)


def left(hosts: Cluster) -> list[int]:
    return [pid for host in ("n1", "n2") for pid in hosts.processes(host, *OURS)]


def assert_same(run: RunDir, whole: RunDir) -> None:
    assert newest_weights(run) == newest_weights(whole)
    assert_records_agree(records(run), records(whole), tolerance=0)


def attempt(run: RunDir, number: int) -> dict[str, Any]:
    return dict(json.loads(run.attempt(number).read_text()))


ODD = "a b'c\"d$(touch canary)`touch canary`;e\nf\\ü*"


def writes_what_it_was_given(moment: Moment) -> None:
    if moment.step == 1:
        Path(os.environ["WHERE"], f"rank-{moment.rank}").write_text(os.environ["ODD"])


def test_two_hosts_train_as_two_workers_here_under_odd_names_that_are_run_nowhere(
    hosts: Cluster, unknown_names: tuple[str, str], arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    """Also through torchrun, names and values reach the workers unchanged. The hosts are reached at second addresses,
    by names that they do not resolve."""
    place = tmp_path / ODD.replace("\n", " ")
    place.mkdir()
    fault = faulty(tmp_path / "fault", writes_what_it_was_given)
    given = ("--env", f"ODD={ODD}", "--env", f"WHERE={place}", "--starter", "torchrun")
    on = ("--hosts", ",".join(unknown_names), "--interface", "eth0", *ON_BOTH[2:])
    with hosts.launched(place, ODD.replace("\n", " "), (*arguments, *given, *on), env=fault.env) as run:
        code, output = run.end()
    assert code == 0, output
    assert [node["host"] for node in attempt(run.run, 1)["nodes"]] == ["n1", "n2"]
    assert [(place / f"rank-{rank}").read_text() for rank in (0, 1)] == [ODD, ODD]
    assert not list(tmp_path.rglob("canary*"))
    assert_same(run.run, whole)


def holds_at_step_10_and_in_the_next_attempt_waits_there_for_a_stop(moment: Moment) -> None:
    """On rank 0, which alone looks for a stop request; else the run may have ended before it is there."""
    from time import sleep

    if moment.at == (1, 1, 10):
        moment.hold()
    if moment.at == (2, 0, 10):
        moment.leave_word()
        while not moment.loop.stop.requested:
            sleep(0.02)


@pytest.mark.fault("F5")
def test_a_killed_agent_costs_one_attempt_and_a_stop_saves_on_all_hosts(
    hosts: Cluster, arguments: tuple[str, ...], whole: RunDir, tmp_path: Path
) -> None:
    """The stopped run is finished on this machine, as if nothing had happened."""
    fault = faulty(tmp_path / "fault", holds_at_step_10_and_in_the_next_attempt_waits_there_for_a_stop)
    with hosts.launched(tmp_path, "run", (*arguments, *ON_BOTH), env=fault.env) as run:
        wait_until(fault.held(attempt=1, rank=1).exists, "step 10")
        wait_until(lambda: run.run.newest_step() == 8, "checkpoint 8")
        hosts.on("n2", "kill", "-9", str(attempt(run.run, 1)["nodes"][1]["agent_pid"]))
        wait_until(fault.held(attempt=2, rank=0).exists, "step 10 again")
        run.signal(signal.SIGTERM)
        code, output = run.end()
    assert (code, run.run.last_attempt()) == (75, 2), output
    assert "node 1: its agent is gone" in attempt(run.run, 1)["cause"]
    with launched(tmp_path, "run", (*arguments, "--nodes", "2", "--gpus", "1")) as again:
        assert again.end()[0] == 0
    assert_same(again.run, whole)


@pytest.mark.fault("F6")
def test_a_killed_launcher_leaves_nothing_on_any_host(
    hosts: Cluster, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """Neither agents nor workers, which have a heartbeat before they import torch."""
    with hosts.launched(tmp_path, "run", (*arguments, *ON_BOTH)) as run:
        wait_until(lambda: run.progress(0) and run.progress(1), "a heartbeat of each worker")
        assert left(hosts)
        run.signal(signal.SIGKILL)
    wait_until(lambda: not left(hosts), "the end of all processes on the hosts", deadline_s=5)


def holds_at_step_10(moment: Moment) -> None:
    if moment.at == (1, 1, 10):
        moment.hold()


@pytest.mark.fault("F7")
def test_after_a_cut_cable_the_run_goes_on_without_that_host(
    hosts: Cluster, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """The cut-off side ends by itself, and nothing of it is left when the cable is in again."""
    fault = faulty(tmp_path / "fault", holds_at_step_10)
    with hosts.launched(tmp_path, "run", (*arguments, *ON_BOTH, "--elastic", "1:2"), env=fault.env) as run:
        wait_until(fault.held(attempt=1, rank=1).exists, "step 10")
        wait_until(lambda: run.run.newest_step() == 8, "checkpoint 8")
        cut_at = time.time()
        hosts.do("link", "n2", "down")
        try:
            code, output = run.end()
        finally:
            hosts.do("link", "n2", "up")
    assert code == 0, output
    assert "going on with 1 workers on 1" in output
    first = attempt(run.run, 1)
    print(f"noticed after {first['noticed'] - cut_at:.1f} s")
    assert first["noticed"] - cut_at < 25
    wait_until(lambda: not left(hosts), "the end of the cut-off side", deadline_s=70)


@pytest.mark.parametrize(
    ("asked", "code", "expected"),
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
def test_what_is_wrong_with_hosts_is_said_before_anything_is_started(
    asked: tuple[str, ...], code: int, expected: str, hosts: Cluster, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with hosts.launched(tmp_path, "run", (*arguments, *asked)) as run:
        found, output = run.end()
    assert found == code
    assert expected in output
    assert not run.run.path.exists()


def test_an_interface_that_others_do_not_reach_is_named(
    hosts: Cluster, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with hosts.launched(tmp_path, "run", (*arguments, *ON_BOTH, "--interface", "lo")) as run:
        code, output = run.end()
    assert code == 1
    assert "node 1: it can't reach n1 at 127.0.0.1:" in output
