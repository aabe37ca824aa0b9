"""A run that is asked to stop: by which signals and when, and what if it does not."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmfsd.run.run_dir import NOW, RunDir
from fmfsd.system.atomic_files import write_whole
from fmfsd.training.stop_flag import StopFlag
from launcher.supervise.failure_report import first_failure
from launcher.supervise.stop_requests import Requests
from tests.helpers.processes import wait_until
from tests.helpers.stand_ins import (
    BEGUN,
    FOR_EVER,
    UNTIL_STOPPED,
    WITH_CHILD,
    carry_out,
    carry_out_and_hear,
    meanwhile,
    starter,
)

pytestmark = pytest.mark.usefixtures("processes")


def asked() -> Requests:
    """To stop, before anything was started."""
    requests = Requests()
    requests.ask()
    return requests


@pytest.fixture
def not_under_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_run_by_request(number: signal.Signals, run: RunDir, not_under_nohup: None) -> None:
    def send() -> None:
        starter(run, 0)
        starter(run, 1)
        os.kill(os.getpid(), number)

    assert carry_out_and_hear(run, send, UNTIL_STOPPED, UNTIL_STOPPED).state == "stopped"


def test_two_signals_at_once_are_one(run: RunDir) -> None:
    def send() -> None:
        starter(run, 0)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)

    assert carry_out_and_hear(run, send, UNTIL_STOPPED).state == "stopped"


def test_a_second_interrupt_a_second_later_ends_at_once(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.stop_requests.SECOND_INTERRUPT_S", 0.2)

    def send() -> None:
        starter(run, 0)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(run.stop_request.exists, "stop request")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    assert carry_out_and_hear(run, send, FOR_EVER).state == "interrupted"


def test_an_agent_that_is_asked_to_stop_stops_the_run(run: RunDir) -> None:
    def send() -> None:
        agent = psutil.Process(starter(run, 1)).parent()
        assert agent is not None
        agent.terminate()

    thread = meanwhile(send)
    assert carry_out(run, UNTIL_STOPPED, UNTIL_STOPPED).state == "stopped"
    thread.join()


def test_after_the_grace_everything_is_ended_by_force(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.coordinator.TERM_TO_KILL_S", 0.3)
    attempt = carry_out(run, BEGUN + WITH_CHILD + FOR_EVER, FOR_EVER, grace_s=1.0, requests=asked())
    assert attempt.state == "failed"
    assert first_failure(run, attempt).cause == "it did not stop within the 1 s of --grace"
    assert [node.exit_code for node in attempt.nodes] == [-9, -9]


def test_interrupts_closer_than_a_second_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 100.0, 100.9, 101.0])
    monkeypatch.setattr("launcher.supervise.stop_requests.time.monotonic", lambda: next(moments))
    requests, seen = Requests(), []
    for _ in range(3):
        requests.on_interrupt(signal.SIGINT, None)
        seen.append((requests.stop, requests.interrupted))
    assert seen == [(True, False), (True, False), (True, True)]


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """As nohup asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        requests = Requests()
        with requests.heard():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not requests.stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_that_end_what_has_not_begun_yet_are_a_stop(run: RunDir) -> None:
    """As srun sends them to everybody, also to those that have no handler yet; what was saved before is still there."""
    (run.checkpoints / "step-00000007").mkdir()

    def send() -> None:
        process = starter(run, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(process, signal.SIGTERM)

    attempt = carry_out_and_hear(run, send, "until(lambda: False)")
    assert attempt.state == "stopped"
    outcome = json.loads(run.outcome.read_text())
    assert (outcome["state"], outcome["step"], outcome["resumable"]) == ("stopped", 7, True)


def test_signals_that_end_a_training_worker_are_none(run: RunDir) -> None:
    def send() -> None:
        process = starter(run, 0)
        wait_until(run.rank_progress(0).exists, "a worker that trains")
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(process, signal.SIGTERM)

    assert carry_out_and_hear(run, send, BEGUN + "until(lambda: False)").state == "failed"


def test_where_no_file_can_be_written_a_stop_is_passed_on_by_signals(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "touch", no_space)
    listens = "signal.signal(signal.SIGTERM, lambda *_: (outcome('stopped'), sys.exit(0)))\n"

    def send() -> None:
        wait_until(run.rank_progress(0).exists, "a worker that listens and trains")
        os.kill(os.getpid(), signal.SIGTERM)

    assert carry_out_and_hear(run, send, listens + BEGUN + "until(lambda: False)").state == "stopped"


def test_a_request_to_end_now_ends_a_run_that_would_have_stopped(run: RunDir) -> None:
    """And the workers do not take it for one to save."""

    def send() -> None:
        starter(run, 0)
        write_whole(run.stop_request, NOW)

    thread = meanwhile(send)
    assert carry_out(run, FOR_EVER).state == "interrupted"
    thread.join()
    assert not StopFlag(run.stop_request).requested
    write_whole(run.stop_request, "")
    assert StopFlag(run.stop_request).requested
