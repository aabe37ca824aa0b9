"""The rendezvous of several nodes, with real agents on this machine that act as hosts."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from launcher.agent import network
from launcher.plan.launch_plan import LaunchPlan
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_attempt
from launcher.supervise.stop_requests import StopRequests
from launcher.transport.agent_client import AGENT_COMMAND, AgentProcess, close_agents_together
from launcher.transport.connect_with_retry import describe_lost_connection
from tests.helpers.processes import wait_until
from tests.helpers.stand_ins import WRITES_ITS_ENVIRONMENT, make_plan_for_hosts, start_thread

pytestmark = pytest.mark.usefixtures("processes")

REMOTE_AGENT = (*AGENT_COMMAND, "--deadline", "60")
HAS_A_NETWORK = any(not address.startswith("127.") for own in network.interface_addresses().values() for address in own)


def attempt_of(run: RunDir, plan: LaunchPlan) -> Attempt:
    return run_attempt(plan, run, grace_s=5, requests=StopRequests(), on_poll=lambda: None)


@pytest.mark.skipif(not HAS_A_NETWORK, reason="needs a network interface besides loopback")
def test_the_rendezvous_address_is_reachable_by_all_and_each_node_has_its_own_folder(run: RunDir) -> None:
    attempt = attempt_of(
        run, make_plan_for_hosts(run, WRITES_ITS_ENVIRONMENT, REMOTE_AGENT, REMOTE_AGENT, REMOTE_AGENT)
    )
    assert attempt.state == "finished", attempt
    environments = [json.loads((run.path / f"given-{number}").read_text()) for number in range(3)]
    own = network.interface_addresses()
    assert len({(each["ADDRESS"], each["PORT"], each["INTERFACE"]) for each in environments}) == 1
    assert environments[0]["ADDRESS"] in own[environments[0]["INTERFACE"]] != ["127.0.0.1"]
    assert environments[0]["NCCL"] == f"={environments[0]['INTERFACE']}"
    scratches = [Path(each["SCRATCH"]) for each in environments]
    assert len(set(scratches)) == 3
    assert not any(scratch.exists() for scratch in scratches)


def test_an_offered_port_is_reserved_for_the_worker_that_will_listen() -> None:
    """The worker imports torch first, and other processes request free ports in the meantime."""
    listener = network.open_listener()
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        network.reserve_port(port)
    listener.close()
    with network.reserve_port(port):
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("", port))
        with socket.create_server(("", port)), socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_node_that_can_not_be_reached_is_named(run: RunDir) -> None:
    """The network namespace of one node has no connection."""
    isolated = ("unshare", "--net", *REMOTE_AGENT)
    if os.geteuid():
        pytest.skip("a network namespace needs root")
    attempt = attempt_of(run, make_plan_for_hosts(run, WRITES_ITS_ENVIRONMENT, REMOTE_AGENT, isolated))
    assert "it can't reach" in attempt.nodes[1].trouble
    assert attempt.state == "failed"


def test_a_stop_request_is_handled_while_waiting_for_nodes(run: RunDir) -> None:
    """One agent never answers, like that of a host that is slow to start."""
    silent = ("sh", "-c", "read -r line; read -r line")
    thread = start_thread(run.stop_request.touch)
    start = time.monotonic()
    attempt = attempt_of(run, make_plan_for_hosts(run, WRITES_ITS_ENVIRONMENT, REMOTE_AGENT, silent))
    thread.join()
    assert attempt.state == "stopped"
    assert time.monotonic() - start < 40


def test_agents_that_do_not_exit_share_one_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.transport.agent_client.END_TIMEOUT_S", 2.0)
    start = time.monotonic()
    with close_agents_together() as agents:
        agents += [AgentProcess(("sh", "-c", "trap '' TERM; exec sleep 60"), deadline_s=60) for _ in range(8)]
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "greeting",
    ["4711\\n", "null\\n", '{"motd": 1}\\n', "Welcome!\\n", "\\033]0;title\\007\\033[1m", '{"motd": 1}', "a\\nb "],
)
def test_output_of_a_hosts_shell_before_the_agents_messages_is_ignored(greeting: str) -> None:
    """The output may lack a newline at its end."""
    agent = AgentProcess(("sh", "-c", f"printf '{greeting}'; exec \"$@\"", "sh", *REMOTE_AGENT), deadline_s=60)
    try:
        events = wait_until(agent.read, "the agent's message")
        assert [event["event"] for event in events] == ["ready"]
    finally:
        agent.close()


def test_output_of_a_hosts_shell_without_an_agent_is_reported_without_escape_sequences() -> None:
    agent = AgentProcess(("sh", "-c", "printf '\\033]0;title\\007Select a project: '"), deadline_s=60)
    try:
        (event,) = wait_until(agent.read, "its end")
        assert (event["event"], describe_lost_connection(event)) == ("gone", "Select a project:")
    finally:
        agent.close()


def test_an_agent_without_messages_exits_after_its_deadline() -> None:
    agent = AgentProcess((*AGENT_COMMAND, "--deadline", "0.5"), deadline_s=60)
    try:
        assert wait_until(agent.read, "the agent's message")[0]["event"] == "ready"
        assert wait_until(agent.read, "its end")[0]["event"] == "gone"
    finally:
        agent.close()
