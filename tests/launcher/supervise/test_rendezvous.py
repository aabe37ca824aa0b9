"""How several nodes come to meet, with real agents on this machine in the place of those of hosts."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from launcher.agent import network
from launcher.plan.plan import LaunchPlan
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_plan
from launcher.supervise.stop_requests import Requests
from launcher.transport.agent_client import AGENT, Agent, closing_all
from launcher.transport.connect import on_the_way
from tests.helpers.processes import wait_until
from tests.helpers.stand_ins import WRITES_WHAT_IT_WAS_GIVEN, meanwhile, plan_for_hosts

pytestmark = pytest.mark.usefixtures("processes")

FAR = (*AGENT, "--deadline", "60")
HAS_A_NETWORK = any(not address.startswith("127.") for own in network.interface_addresses().values() for address in own)


def carried_out(run: RunDir, plan: LaunchPlan) -> Attempt:
    return run_plan(plan, run, grace_s=5, requests=Requests(), watch=lambda: None)


@pytest.mark.skipif(not HAS_A_NETWORK, reason="needs a network beside loopback")
def test_nodes_meet_at_an_address_that_all_have_reached_and_each_has_a_folder_of_its_own(run: RunDir) -> None:
    attempt = carried_out(run, plan_for_hosts(run, WRITES_WHAT_IT_WAS_GIVEN, FAR, FAR, FAR))
    assert attempt.state == "finished", attempt
    given = [json.loads((run.path / f"given-{number}").read_text()) for number in range(3)]
    own = network.interface_addresses()
    assert len({(each["ADDRESS"], each["PORT"], each["INTERFACE"]) for each in given}) == 1
    assert given[0]["ADDRESS"] in own[given[0]["INTERFACE"]] != ["127.0.0.1"]
    assert given[0]["NCCL"] == f"={given[0]['INTERFACE']}"
    scratches = [Path(each["SCRATCH"]) for each in given]
    assert len(set(scratches)) == 3
    assert not any(scratch.exists() for scratch in scratches)


def test_a_port_that_was_offered_is_kept_for_who_knows_of_it() -> None:
    """torch is imported first, and meanwhile others ask for free ports."""
    listener = network.listen()
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        network.hold(port)
    listener.close()
    with network.hold(port):
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("", port))
        with socket.create_server(("", port)), socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_node_that_can_not_be_reached_is_named(run: RunDir) -> None:
    """It has a network of its own, which leads nowhere."""
    alone = ("unshare", "--net", *FAR)
    if os.geteuid():
        pytest.skip("a network of its own needs root")
    attempt = carried_out(run, plan_for_hosts(run, WRITES_WHAT_IT_WAS_GIVEN, FAR, alone))
    assert "it can't reach" in attempt.nodes[1].trouble
    assert attempt.state == "failed"


def test_a_stop_is_heard_while_nodes_are_waited_for(run: RunDir) -> None:
    """One agent never answers, as of a host that is slow to come up."""
    silent = ("sh", "-c", "read -r line; read -r line")
    thread = meanwhile(run.stop_request.touch)
    start = time.monotonic()
    attempt = carried_out(run, plan_for_hosts(run, WRITES_WHAT_IT_WAS_GIVEN, FAR, silent))
    thread.join()
    assert attempt.state == "stopped"
    assert time.monotonic() - start < 40


def test_agents_that_do_not_end_are_given_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.transport.agent_client.END_S", 2.0)
    start = time.monotonic()
    with closing_all() as agents:
        agents += [Agent(("sh", "-c", "trap '' TERM; exec sleep 60"), deadline_s=60) for _ in range(8)]
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "greeting",
    ["4711\\n", "null\\n", '{"motd": 1}\\n', "Welcome!\\n", "\\033]0;title\\007\\033[1m", '{"motd": 1}', "a\\nb "],
)
def test_what_a_hosts_shell_prints_first_is_no_message_of_the_agent(greeting: str) -> None:
    """With or without an end of line."""
    agent = Agent(("sh", "-c", f"printf '{greeting}'; exec \"$@\"", "sh", *FAR), deadline_s=60)
    try:
        events = wait_until(agent.read, "the agent's message")
        assert [event["event"] for event in events] == ["ready"]
    finally:
        agent.close()


def test_what_a_hosts_shell_prints_instead_of_an_agents_message_is_reported_without_escape_sequences() -> None:
    agent = Agent(("sh", "-c", "printf '\\033]0;title\\007Select a project: '"), deadline_s=60)
    try:
        (event,) = wait_until(agent.read, "its end")
        assert (event["event"], on_the_way(event)) == ("gone", "Select a project:")
    finally:
        agent.close()


def test_an_agent_that_hears_nothing_ends_by_itself() -> None:
    agent = Agent((*AGENT, "--deadline", "0.5"), deadline_s=60)
    try:
        assert wait_until(agent.read, "the agent's word")[0]["event"] == "ready"
        assert wait_until(agent.read, "its end")[0]["event"] == "gone"
    finally:
        agent.close()
