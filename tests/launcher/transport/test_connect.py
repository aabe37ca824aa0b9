"""Opening connections: how many at a time, and retries, with a fake ssh that is refused as by a busy sshd."""

import time
from functools import partial
from pathlib import Path

import pytest

from launcher.transport import connect_with_retry
from launcher.transport.agent_client import AGENT_COMMAND, AgentConnection, AgentProcess, close_agents_together
from launcher.transport.connect_with_retry import (
    MAX_CONCURRENT_LOGINS,
    MAX_TRIES,
    describe_lost_connection,
    open_connections,
)

pytestmark = pytest.mark.usefixtures("processes")

RESET = "kex_exchange_identification: read: Connection reset by peer"
REFUSED_TWICE = """
echo try >> "$1"
[ "$(wc -l < "$1")" -gt 2 ] || { echo "$2" >&2; exit 255; }
shift 2
exec "$@"
"""


def refused_twice(count: Path, message: str = RESET) -> AgentProcess:
    return AgentProcess(("sh", "-c", REFUSED_TWICE, "sh", str(count), message, *AGENT_COMMAND), deadline_s=60)


def end_message(agent: AgentConnection) -> str:
    (event,) = agent.read()
    return describe_lost_connection(event)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_with_retry, "RETRY_DELAY_S", 0.01)


@pytest.mark.fault("F60")
@pytest.mark.parametrize("message", [RESET, "srun: error: Unable to create step for job 7: Job credential revoked"])
def test_a_connection_that_was_refused_is_opened_again(message: str, tmp_path: Path) -> None:
    with close_agents_together() as agents:
        (agent,) = open_connections([partial(refused_twice, tmp_path / "tries", message)], agents)
        assert isinstance(agent, AgentConnection)
        assert (agents, [event["event"] for event in agent.read()]) == ([agent], ["ready"])
    assert (tmp_path / "tries").read_text() == "try\n" * 3


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (RESET, "raise MaxStartups (and PerSourcePenalties) in its sshd_config"),
        ("srun: error: Unable to contact slurm controller (connect failure)", "see `scontrol ping`, MessageTimeout"),
    ],
)
def test_a_connection_that_is_always_refused_is_reported_with_the_setting(message: str, remedy: str) -> None:
    started: list[None] = []

    def refused() -> AgentProcess:
        started.append(None)
        return AgentProcess(("sh", "-c", 'echo "$1" >&2; exit 255', "sh", message), deadline_s=60)

    with close_agents_together() as agents:
        (agent,) = open_connections([refused], agents)
        assert isinstance(agent, AgentConnection)
        text = end_message(agent)
    assert len(started) == MAX_TRIES
    assert text.startswith(f"{message} / refused {MAX_TRIES} times: ")
    assert remedy in text


def test_another_failure_is_not_retried() -> None:
    started: list[None] = []

    def unknown() -> AgentProcess:
        started.append(None)
        return AgentProcess(("sh", "-c", "echo ssh: Could not resolve hostname n9 >&2; exit 255"), deadline_s=60)

    with close_agents_together() as agents:
        (agent,) = open_connections([unknown], agents)
        assert isinstance(agent, AgentConnection)
        assert end_message(agent) == "ssh: Could not resolve hostname n9"
    assert len(started) == 1


def test_few_connections_log_in_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further connections are opened when earlier ones have logged in; here each does after it was counted."""
    monkeypatch.setattr(connect_with_retry, "LOGIN_S", 60.0)
    gates = list[Path]()
    counts = list[int]()

    def start() -> AgentProcess:
        gates.append(tmp_path / str(len(gates)))
        script = 'until [ -e "$1" ]; do sleep 0.01; done; echo in; exec cat'
        return AgentProcess(("sh", "-c", script, "sh", str(gates[-1])), deadline_s=60)

    def let_all_in() -> bool:
        waiting = [gate for gate in gates if not gate.exists()]
        counts.append(len(waiting))
        for gate in waiting:
            gate.touch()
        return False

    with close_agents_together() as agents:
        open_connections([start] * (3 * MAX_CONCURRENT_LOGINS), agents, stop=let_all_in)
    assert (len(gates), max(counts)) == (3 * MAX_CONCURRENT_LOGINS, MAX_CONCURRENT_LOGINS)


def test_a_stop_request_opens_the_remaining_connections_at_once() -> None:
    start_s = time.monotonic()
    with close_agents_together() as agents:
        opened = open_connections([lambda: AgentProcess(("cat",), deadline_s=60)] * 3, agents, stop=lambda: True)
        assert len(opened) == len(agents) == 3
    assert time.monotonic() - start_s < connect_with_retry.OPEN_TIMEOUT_S
