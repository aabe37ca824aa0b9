"""Opening connections: how many at a time, and retries, with a fake ssh that is refused as by a busy sshd."""

import time
from functools import partial
from pathlib import Path

import pytest

from launcher.transport import connect
from launcher.transport.agent_client import AGENT, Agent, Link, closing_all
from launcher.transport.connect import AT_ONCE, TRIES, on_the_way, open_all

pytestmark = pytest.mark.usefixtures("processes")

RESET = "kex_exchange_identification: read: Connection reset by peer"
REFUSED_TWICE = """
echo try >> "$1"
[ "$(wc -l < "$1")" -gt 2 ] || { echo "$2" >&2; exit 255; }
shift 2
exec "$@"
"""


def refused_twice(count: Path, message: str = RESET) -> Agent:
    return Agent(("sh", "-c", REFUSED_TWICE, "sh", str(count), message, *AGENT), deadline_s=60)


def end_message(agent: Link) -> str:
    (event,) = agent.read()
    return on_the_way(event)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "RETRY_S", 0.01)


@pytest.mark.fault("F60")
@pytest.mark.parametrize("message", [RESET, "srun: error: Unable to create step for job 7: Job credential revoked"])
def test_a_connection_that_was_refused_is_opened_again(message: str, tmp_path: Path) -> None:
    with closing_all() as agents:
        (agent,) = open_all([partial(refused_twice, tmp_path / "tries", message)], agents)
        assert isinstance(agent, Link)
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

    def refused() -> Agent:
        started.append(None)
        return Agent(("sh", "-c", 'echo "$1" >&2; exit 255', "sh", message), deadline_s=60)

    with closing_all() as agents:
        (agent,) = open_all([refused], agents)
        assert isinstance(agent, Link)
        text = end_message(agent)
    assert len(started) == TRIES
    assert text.startswith(f"{message} / refused {TRIES} times: ")
    assert remedy in text


def test_another_failure_is_not_retried() -> None:
    started: list[None] = []

    def unknown() -> Agent:
        started.append(None)
        return Agent(("sh", "-c", "echo ssh: Could not resolve hostname n9 >&2; exit 255"), deadline_s=60)

    with closing_all() as agents:
        (agent,) = open_all([unknown], agents)
        assert isinstance(agent, Link)
        assert end_message(agent) == "ssh: Could not resolve hostname n9"
    assert len(started) == 1


def test_few_connections_log_in_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further connections are opened when earlier ones have logged in; here each does after it was counted."""
    monkeypatch.setattr(connect, "LOGIN_S", 60.0)
    gates = list[Path]()
    counts = list[int]()

    def start() -> Agent:
        gates.append(tmp_path / str(len(gates)))
        script = 'until [ -e "$1" ]; do sleep 0.01; done; echo in; exec cat'
        return Agent(("sh", "-c", script, "sh", str(gates[-1])), deadline_s=60)

    def let_all_in() -> bool:
        waiting = [gate for gate in gates if not gate.exists()]
        counts.append(len(waiting))
        for gate in waiting:
            gate.touch()
        return False

    with closing_all() as agents:
        open_all([start] * (3 * AT_ONCE), agents, stop=let_all_in)
    assert (len(gates), max(counts)) == (3 * AT_ONCE, AT_ONCE)


def test_a_stop_request_opens_the_remaining_connections_at_once() -> None:
    start_s = time.monotonic()
    with closing_all() as agents:
        opened = open_all([lambda: Agent(("cat",), deadline_s=60)] * 3, agents, stop=lambda: True)
        assert len(opened) == len(agents) == 3
    assert time.monotonic() - start_s < connect.OPEN_S
