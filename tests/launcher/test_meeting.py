"""How several nodes come to meet, with real agents on this machine in the place of those of hosts."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from fmfsd.rundir import RunDir
from launcher.agent import node
from launcher.attempt import Attempt
from launcher.hosts.agents import AGENT, Agent, closing_all
from launcher.plan import LaunchPlan, NodePlan
from launcher.requests import Requests
from launcher.supervise import run_plan
from launcher.symbols import ADDRESS, ATTEMPT, INTERFACE, PORT, SCRATCH
from tests.helpers.processes import wait_until
from tests.helpers.stand_ins import PRELUDE, meanwhile

pytestmark = pytest.mark.usefixtures("processes")

FAR = (*AGENT, "--deadline", "60")
HAS_A_NETWORK = any(not address.startswith("127.") for address in node.interface_addresses().values())
WRITES_WHAT_IT_WAS_GIVEN = """
names = ("ADDRESS", "PORT", "INTERFACE", "SCRATCH")
(run / f"given-{node}").write_text(json.dumps({name: os.environ[name] for name in names}))
outcome("finished")
"""


def plan_of(run: RunDir, script: str, *ways: tuple[str, ...], interface: str | None = None) -> LaunchPlan:
    """A node for each way to an agent, as of other hosts."""
    given = {"ADDRESS": ADDRESS, "PORT": PORT, "INTERFACE": INTERFACE, "SCRATCH": SCRATCH, "FMFSD_ATTEMPT": ATTEMPT}
    env = {**given, "PATH": os.environ["PATH"], "FMFSD_TEST_ID": os.environ["FMFSD_TEST_ID"]}
    nodes = (
        NodePlan(number, (sys.executable, "-c", PRELUDE + script, str(run.path), str(number)), env, "/", "far", way)
        for number, way in enumerate(ways)
    )
    return LaunchPlan(str(run.path), "cpu", 1, tuple(nodes), interface=interface)


def carried_out(run: RunDir, plan: LaunchPlan) -> Attempt:
    return run_plan(plan, run, grace_s=5, requests=Requests(), watch=lambda: None)


@pytest.mark.skipif(not HAS_A_NETWORK, reason="needs a network beside loopback")
def test_nodes_meet_at_an_address_that_all_have_reached_and_each_has_a_folder_of_its_own(run: RunDir) -> None:
    attempt = carried_out(run, plan_of(run, WRITES_WHAT_IT_WAS_GIVEN, FAR, FAR, FAR))
    assert attempt.state == "finished", attempt
    given = [json.loads((run.path / f"given-{number}").read_text()) for number in range(3)]
    own = node.interface_addresses()
    assert len({(each["ADDRESS"], each["PORT"], each["INTERFACE"]) for each in given}) == 1
    assert own[given[0]["INTERFACE"]] == given[0]["ADDRESS"] != "127.0.0.1"
    scratches = [Path(each["SCRATCH"]) for each in given]
    assert len(set(scratches)) == 3
    assert not any(scratch.exists() for scratch in scratches)


def test_a_port_that_was_offered_is_kept_for_who_knows_of_it() -> None:
    """torch is imported first, and meanwhile others ask for free ports."""
    listener = node.listen()
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        node.hold(port)
    listener.close()
    with node.hold(port):
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("", port))
        with socket.create_server(("", port)), socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_node_that_can_not_be_reached_is_named(run: RunDir) -> None:
    """It has a network of its own, which leads nowhere."""
    alone = ("unshare", "--net", *FAR)
    if os.geteuid():
        pytest.skip("a network of its own needs root")
    attempt = carried_out(run, plan_of(run, WRITES_WHAT_IT_WAS_GIVEN, FAR, alone))
    assert "it can't reach" in attempt.nodes[1].trouble
    assert attempt.state == "failed"


def test_a_stop_is_heard_while_nodes_are_waited_for(run: RunDir) -> None:
    """One agent never answers, as of a host that is slow to come up."""
    silent = ("sh", "-c", "read -r line; read -r line")
    thread = meanwhile(run.stop_request.touch)
    start = time.monotonic()
    attempt = carried_out(run, plan_of(run, WRITES_WHAT_IT_WAS_GIVEN, FAR, silent))
    thread.join()
    assert attempt.state == "stopped"
    assert time.monotonic() - start < 20


def test_agents_that_do_not_end_are_given_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.hosts.agents.END_S", 1.0)
    start = time.monotonic()
    with closing_all() as agents:
        agents += [Agent(("sh", "-c", "trap '' TERM; exec sleep 60"), deadline_s=60) for _ in range(4)]
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("greeting", ["4711", "null", '{"motd": 1}', "Welcome!"])
def test_what_a_hosts_shell_says_first_is_no_agents_word(greeting: str) -> None:
    agent = Agent(("sh", "-c", f"echo '{greeting}'; exec \"$@\"", "sh", *FAR), deadline_s=60)
    try:
        events = wait_until(agent.read, "the agent's word")
        assert [event["event"] for event in events] == ["ready"]
    finally:
        agent.close()


def test_an_agent_that_hears_nothing_ends_by_itself() -> None:
    agent = Agent((*AGENT, "--deadline", "0.5"), deadline_s=60)
    try:
        assert wait_until(agent.read, "the agent's word")[0]["event"] == "ready"
        assert wait_until(agent.read, "its end")[0]["event"] == "gone"
    finally:
        agent.close()
