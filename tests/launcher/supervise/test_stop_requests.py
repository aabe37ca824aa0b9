"""Stop requests by signals and files, and runs that do not stop."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmfsd.run.run_dir import STOP_NOW, RunDir
from fmfsd.system.atomic_files import write_atomic
from fmfsd.training.stop_flag import StopFlag
from launcher.supervise.failure_report import find_first_failure
from launcher.supervise.stop_requests import StopRequests
from tests.helpers.processes import wait_until
from tests.helpers.stand_ins import (
    FOR_EVER,
    STARTED,
    UNTIL_STOPPED,
    WITH_CHILD,
    run_scripts,
    run_scripts_with_signals,
    start_thread,
    wait_for_starter,
)

pytestmark = pytest.mark.usefixtures("processes")


def stop_requested() -> StopRequests:
    """Return requests that already contain a stop, before anything was started."""
    requests = StopRequests()
    requests.request_stop()
    return requests


@pytest.fixture
def not_under_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_run_by_request(number: signal.Signals, run: RunDir, not_under_nohup: None) -> None:
    def send() -> None:
        wait_for_starter(run, 0)
        wait_for_starter(run, 1)
        os.kill(os.getpid(), number)

    assert run_scripts_with_signals(run, send, UNTIL_STOPPED, UNTIL_STOPPED).state == "stopped"


def test_repeated_signals_at_once_count_as_one(run: RunDir) -> None:
    def send() -> None:
        wait_for_starter(run, 0)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)

    assert run_scripts_with_signals(run, send, UNTIL_STOPPED).state == "stopped"


def test_a_second_interrupt_a_second_later_kills_the_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.stop_requests.SECOND_INTERRUPT_S", 0.2)

    def send() -> None:
        wait_for_starter(run, 0)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(run.stop_request.exists, "stop request")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    assert run_scripts_with_signals(run, send, FOR_EVER).state == "interrupted"


def test_an_agent_that_gets_sigterm_stops_the_run(run: RunDir) -> None:
    def send() -> None:
        agent = psutil.Process(wait_for_starter(run, 1)).parent()
        assert agent is not None
        agent.terminate()

    thread = start_thread(send)
    assert run_scripts(run, UNTIL_STOPPED, UNTIL_STOPPED).state == "stopped"
    thread.join()


def test_after_the_grace_period_all_processes_are_killed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.coordinator.TERM_TO_KILL_S", 0.3)
    attempt = run_scripts(run, STARTED + WITH_CHILD + FOR_EVER, FOR_EVER, grace_s=1.0, requests=stop_requested())
    assert attempt.state == "failed"
    assert find_first_failure(run, attempt).cause == "it did not stop within the 1 s of --grace"
    assert [node.exit_code for node in attempt.nodes] == [-9, -9]


def test_interrupts_within_a_second_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 100.0, 100.9, 101.0])
    monkeypatch.setattr("launcher.supervise.stop_requests.time.monotonic", lambda: next(moments))
    requests, states = StopRequests(), []
    for _ in range(3):
        requests.on_interrupt(signal.SIGINT, None)
        states.append((requests.is_stop_requested, requests.interrupted))
    assert states == [(True, False), (True, False), (True, True)]


def test_an_ignored_sighup_stays_ignored() -> None:
    """nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        requests = StopRequests()
        with requests.install_handlers():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not requests.is_stop_requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_kills_processes_before_training_counts_as_a_stop(run: RunDir) -> None:
    """srun signals all processes, including those without a handler yet; earlier checkpoints remain."""
    (run.checkpoints / "step-00000007").mkdir()

    def send() -> None:
        process = wait_for_starter(run, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(process, signal.SIGTERM)

    attempt = run_scripts_with_signals(run, send, "until(lambda: False)")
    assert attempt.state == "stopped"
    outcome = json.loads(run.outcome.read_text())
    assert (outcome["state"], outcome["step"], outcome["resumable"]) == ("stopped", 7, True)


def test_a_signal_that_kills_a_training_worker_is_a_failure(run: RunDir) -> None:
    def send() -> None:
        process = wait_for_starter(run, 0)
        wait_until(run.rank_progress(0).exists, "a worker that trains")
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(process, signal.SIGTERM)

    assert run_scripts_with_signals(run, send, STARTED + "until(lambda: False)").state == "failed"


def test_if_no_file_can_be_written_a_stop_is_passed_on_by_signals(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "touch", no_space)
    handles_sigterm = "signal.signal(signal.SIGTERM, lambda *_: (outcome('stopped'), sys.exit(0)))\n"

    def send() -> None:
        wait_until(run.rank_progress(0).exists, "a worker that handles signals and trains")
        os.kill(os.getpid(), signal.SIGTERM)

    assert run_scripts_with_signals(run, send, handles_sigterm + STARTED + "until(lambda: False)").state == "stopped"


def test_a_request_to_end_now_kills_the_run_instead_of_stopping_it(run: RunDir) -> None:
    """Workers do not take it for a request to save."""

    def send() -> None:
        wait_for_starter(run, 0)
        write_atomic(run.stop_request, STOP_NOW)

    thread = start_thread(send)
    assert run_scripts(run, FOR_EVER).state == "interrupted"
    thread.join()
    assert not StopFlag(run.stop_request).requested
    write_atomic(run.stop_request, "")
    assert StopFlag(run.stop_request).requested
