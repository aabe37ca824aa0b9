"""Coordinator and node agents with real processes, and a stand-in for torchrun that starts in no time."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fmfsd.rundir import RunDir
from launcher.attempt import Attempt
from launcher.failures import first_failure
from launcher.hosts.local import LocalAgent, run_here
from launcher.plan import ATTEMPT, LaunchPlan, NodePlan
from launcher.requests import Requests
from launcher.supervise import _scratch, run_plan
from tests.helpers.processes import wait_until

PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
run, node, attempt = Path(sys.argv[1]), sys.argv[2], int(os.environ["FMFSD_ATTEMPT"])
def outcome(state):
    (run / "outcome.json").write_text(json.dumps({"state": state, "attempt": attempt, "step": 1, "metrics": {}}))
def until(condition):
    while not condition(): time.sleep(0.01)
(run / f"pid-{node}").write_text(str(os.getpid()))
"""
BEGUN = "(run / 'progress' / 'rank-0.json').write_text(json.dumps({'attempt': 1, 'state': 'train', 'pid': 1}))\n"
UNTIL_STOPPED = "until((run / 'stop-request').exists)\noutcome('stopped')\n"
FOR_EVER = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nuntil(lambda: False)\n"
WITH_CHILD = (
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def plan(run: RunDir, *scripts: str) -> LaunchPlan:
    nodes = tuple(
        NodePlan(
            node=number,
            argv=(sys.executable, "-c", PRELUDE + script, str(run.path), str(number)),
            env={"PATH": os.environ["PATH"], "FMFSD_ATTEMPT": ATTEMPT, "FMFSD_TEST_ID": os.environ["FMFSD_TEST_ID"]},
            cwd=str(run.path),
        )
        for number, script in enumerate(scripts)
    )
    return LaunchPlan(str(run.path), "cpu", 1, nodes)


def carry_out(run: RunDir, *scripts: str, grace_s: float = 20.0, requests: Requests | None = None) -> Attempt:
    return run_plan(plan(run, *scripts), run, grace_s=grace_s, requests=requests or Requests(), watch=lambda: None)


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


def starter(run: RunDir, node: int) -> int:
    """The process of a node's starter, once it runs."""
    path = run.path / f"pid-{node}"
    return int(wait_until(lambda: path.exists() and path.read_text(), f"starter of node {node}"))


def meanwhile(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def carry_out_and_hear(run: RunDir, send: Callable[[], None], *scripts: str) -> Attempt:
    """With the signals heard that `send` sends meanwhile."""
    requests = Requests()
    with requests.heard():
        thread = meanwhile(send)
        attempt = carry_out(run, *scripts, requests=requests)
    thread.join()
    return attempt


def test_a_run_that_says_finished_is_finished(run: RunDir) -> None:
    attempt = carry_out(run, "outcome('finished')", "pass")
    assert attempt.state == "finished"
    written = json.loads(run.attempt(1).read_text())
    assert (written["state"], [node["exit_code"] for node in written["nodes"]]) == ("finished", [0, 0])
    assert all(node["starter_pid"] and node["agent_pid"] and node["host"] for node in written["nodes"])


def test_exit_codes_without_an_outcome_are_not_trusted(run: RunDir) -> None:
    assert carry_out(run, "pass").state == "failed"


def test_an_outcome_counts_more_than_an_exit_code(run: RunDir) -> None:
    assert carry_out(run, "outcome('finished'); sys.exit(1)").state == "finished"


def test_an_earlier_attempts_outcome_does_not_count(run: RunDir) -> None:
    assert carry_out(run, "outcome('finished')").state == "finished"
    assert carry_out(run, "pass").state == "failed"
    assert run.last_attempt() == 2


def test_a_failing_node_ends_the_others(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.TERM_TO_KILL_S", 0.3)
    attempt = carry_out(run, "until((run / 'pid-1').exists); sys.exit(3)", FOR_EVER)
    assert attempt.state == "failed"
    assert [node.exit_code for node in attempt.nodes] == [3, -9]
    assert [node.killed_from_outside for node in attempt.nodes] == ["", ""]


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
    monkeypatch.setattr("launcher.requests.SECOND_INTERRUPT_S", 0.2)

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
    monkeypatch.setattr("launcher.supervise.TERM_TO_KILL_S", 0.3)
    attempt = carry_out(run, BEGUN + WITH_CHILD + FOR_EVER, FOR_EVER, grace_s=1.0, requests=asked())
    assert attempt.state == "failed"
    assert first_failure(run, attempt).cause == "it did not stop within the 1 s of --grace"
    assert [node.exit_code for node in attempt.nodes] == [-9, -9]


def test_a_killed_agent_is_noticed_and_named(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.TERM_TO_KILL_S", 0.3)

    def send() -> None:
        agent = psutil.Process(starter(run, 0)).parent()
        starter(run, 1)
        assert agent is not None
        agent.kill()

    thread = meanwhile(send)
    attempt = carry_out(run, FOR_EVER, FOR_EVER)
    thread.join()
    assert [node.killed_from_outside for node in attempt.nodes] == ["its agent was killed", ""]


def test_a_killed_starter_takes_its_orphans_with_it(run: RunDir) -> None:
    def send() -> None:
        process = psutil.Process(starter(run, 0))
        wait_until(process.children, "the starter's child")
        process.kill()

    thread = meanwhile(send)
    attempt = carry_out(run, WITH_CHILD + FOR_EVER)
    thread.join()
    assert attempt.nodes[0].killed_from_outside == "its starter was killed by SIGKILL"


def test_a_starter_that_can_not_be_started_is_named(run: RunDir) -> None:
    broken = plan(run, "pass")
    missing = LaunchPlan(broken.run_dir, "cpu", 1, (NodePlan(0, ("/no/such/program",), {}, str(run.path)),))
    attempt = run_plan(missing, run, grace_s=1, requests=Requests(), watch=lambda: None)
    assert "/no/such/program" in attempt.nodes[0].killed_from_outside


def test_output_of_the_starter_is_kept(run: RunDir) -> None:
    carry_out(run, "print('out', flush=True); print('err', file=sys.stderr); outcome('finished')")
    assert run.starter_log(0).read_text().splitlines() == ["out", "err"]


def test_an_agent_whose_coordinator_is_gone_ends_everything(run: RunDir) -> None:
    """What a kill -9 of the launcher does: our end of the agent's stdin closes."""
    agent = LocalAgent(0)
    (node,) = plan(run, WITH_CHILD + FOR_EVER).nodes
    scratch = run.path / "scratch"
    scratch.mkdir()
    filled = node.filled({ATTEMPT: "1"})
    log = str(run.starter_log(0))
    agent.tell(do="start", argv=filled.argv, env=dict(filled.env), cwd=filled.cwd, log=log, scratch=str(scratch))
    process = psutil.Process(starter(run, 0))
    (child,) = wait_until(process.children, "the starter's child")
    start = time.monotonic()
    agent.close()
    assert time.monotonic() - start < 5
    assert not process.is_running()
    assert not child.is_running()
    assert not scratch.exists()


def test_the_watcher_is_called_while_the_run_goes_on(run: RunDir) -> None:
    calls: list[float] = []
    script = "time.sleep(0.5); outcome('finished')"
    run_plan(plan(run, script), run, grace_s=1, requests=Requests(), watch=lambda: calls.append(time.monotonic()))
    assert len(calls) >= 3


def test_an_agent_that_does_not_answer_is_given_up(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a suspended one is: what it had started ends with it."""
    monkeypatch.setattr("launcher.supervise.TERM_TO_KILL_S", 0.3)
    monkeypatch.setattr("launcher.supervise.KILL_TO_LEAVE_S", 0.3)
    monkeypatch.setattr("launcher.hosts.local.END_S", 0.3)
    agents: list[psutil.Process] = []

    def send() -> None:
        agent = psutil.Process(starter(run, 0)).parent()
        assert agent is not None
        agents.append(agent)
        agent.suspend()
        (run.path / "suspended").touch()

    thread = meanwhile(send)
    attempt = carry_out(run, FOR_EVER, "until((run / 'suspended').exists); sys.exit(1)")
    thread.join()
    assert attempt.nodes[0].killed_from_outside == "its agent does not answer"
    assert not agents[0].is_running()


def test_a_workers_last_words_end_the_attempt(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its starter goes on waiting for it."""
    monkeypatch.setattr("launcher.supervise.TERM_TO_KILL_S", 0.3)
    crash = "(run / 'attempts' / '0001-rank-0.json').write_text('{}')\n"
    attempt = carry_out(run, crash + FOR_EVER, FOR_EVER)
    assert attempt.state == "failed"
    assert attempt.trouble == ""


def test_an_agent_that_says_no_json_is_a_failed_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = LocalAgent(0)
    wait_until(lambda: agent.read()[0]["event"] == "ready", "agent")
    reading, writing = os.pipe()
    os.write(writing, b"Segmentation fault\n")
    monkeypatch.setattr(agent, "fileno", lambda: reading)
    (event,) = agent.read()
    assert (event["event"], "Segmentation fault" in event["message"]) == ("failed", True)
    monkeypatch.undo()
    agent.close()
    for end in (reading, writing):
        os.close(end)


def test_interrupts_closer_than_a_second_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 100.0, 100.9, 101.0])
    monkeypatch.setattr("launcher.requests.time.monotonic", lambda: next(moments))
    requests, seen = Requests(), []
    for _ in range(3):
        requests.on_interrupt(signal.SIGINT, None)
        seen.append((requests.stop, requests.interrupted))
    assert seen == [(True, False), (True, False), (True, True)]


def test_a_helper_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.hosts.local.END_S", 0.3)
    asked = iter([False] * 5 + [True] * 100)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    assert run_here([sys.executable, "-c", code], stop=lambda: next(asked)) == -signal.SIGKILL
    assert run_here([sys.executable, "-c", "raise SystemExit(3)"], stop=lambda: False) == 3


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


def test_scratch_folders_have_names_that_urls_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a#b").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a#b"))
    scratch = Path(_scratch())
    assert scratch.parent == Path("/tmp")
    scratch.rmdir()


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


def test_after_the_runs_last_word_nobody_is_waited_for_for_ever(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an agent that somebody has suspended; the word counts."""
    monkeypatch.setattr("launcher.supervise.LAST_WORD_S", 0.3)
    monkeypatch.setattr("launcher.supervise.TERM_TO_KILL_S", 0.3)
    assert carry_out(run, "outcome('finished')", FOR_EVER).state == "finished"
