"""Coordinator and node agents with real processes, and a fast stub instead of torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmfsd.errors import RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.agent.network import create_scratch_folder
from launcher.plan.launch_plan import LaunchPlan, NodePlan
from launcher.plan.placeholders import ATTEMPT
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_attempt
from launcher.supervise.stop_requests import StopRequests
from launcher.transport.agent_client import AgentProcess
from launcher.transport.local_commands import run_captured, run_foreground
from tests.helpers.processes import wait_until
from tests.helpers.stand_ins import FOR_EVER, WITH_CHILD, make_plan, run_scripts, start_thread, wait_for_starter

pytestmark = pytest.mark.usefixtures("processes")


def test_a_run_with_a_finished_outcome_is_finished(run: RunDir) -> None:
    attempt = run_scripts(run, "outcome('finished')", "pass")
    assert attempt.state == "finished"
    content = json.loads(run.attempt(1).read_text())
    assert (content["state"], [node["exit_code"] for node in content["nodes"]]) == ("finished", [0, 0])
    assert all(node["starter_pid"] and node["agent_pid"] and node["host"] for node in content["nodes"])


def test_exit_codes_without_an_outcome_are_not_trusted(run: RunDir) -> None:
    assert run_scripts(run, "pass").state == "failed"


def test_an_outcome_overrides_the_exit_code(run: RunDir) -> None:
    assert run_scripts(run, "outcome('finished'); sys.exit(1)").state == "finished"


def test_an_earlier_attempts_outcome_does_not_count(run: RunDir) -> None:
    assert run_scripts(run, "outcome('finished')").state == "finished"
    assert run_scripts(run, "pass").state == "failed"
    assert run.last_attempt() == 2


def test_a_failing_node_ends_the_others(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.coordinator.TERM_TO_KILL_S", 0.3)
    attempt = run_scripts(run, "until((run / 'pid-1').exists); sys.exit(3)", FOR_EVER)
    assert attempt.state == "failed"
    assert [node.exit_code for node in attempt.nodes] == [3, -9]
    assert [node.external_kill for node in attempt.nodes] == ["", ""]


def test_a_killed_agent_is_detected_and_named(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.coordinator.TERM_TO_KILL_S", 0.3)

    def send() -> None:
        agent = psutil.Process(wait_for_starter(run, 0)).parent()
        wait_for_starter(run, 1)
        assert agent is not None
        agent.kill()

    thread = start_thread(send)
    attempt = run_scripts(run, FOR_EVER, FOR_EVER)
    thread.join()
    assert [node.external_kill for node in attempt.nodes] == ["its agent is gone", ""]


def test_orphans_of_a_killed_starter_are_killed(run: RunDir) -> None:
    def send() -> None:
        process = psutil.Process(wait_for_starter(run, 0))
        wait_until(process.children, "the starter's child")
        process.kill()

    thread = start_thread(send)
    attempt = run_scripts(run, WITH_CHILD + FOR_EVER)
    thread.join()
    assert attempt.nodes[0].external_kill == "its starter was killed by SIGKILL"


def test_a_node_with_some_of_the_gpus_passes_their_numbers_to_its_workers(run: RunDir) -> None:
    """Even if the starter changes CUDA_VISIBLE_DEVICES, as DeepSpeed's does."""
    writes = "(run / 'seen').write_text(os.environ['FMFSD_VISIBLE_GPUS']); outcome('finished')"
    (node,) = make_plan(run, writes).nodes
    sliced = replace(node, env={**node.env, "CUDA_VISIBLE_DEVICES": "2,3"})
    run_attempt(
        replace(make_plan(run, writes), nodes=(sliced,)), run, grace_s=5, requests=StopRequests(), on_poll=lambda: None
    )
    assert (run.path / "seen").read_text() == "2,3"


def test_a_workers_exit_code_is_seen_before_its_starter_polls(run: RunDir) -> None:
    """DeepSpeed's launcher polls once a second, and reports only the first exit that it finds."""
    attempt = run_scripts(run, WITH_CHILD + "time.sleep(0.5); child.kill(); time.sleep(0.5); outcome('failed')")
    assert list(attempt.nodes[0].worker_codes.values()) == [-9]


def direct_plan(run: RunDir, script: str) -> LaunchPlan:
    """Return a plan with one node, whose agent starts two workers itself; each writes its process id to
    `worker-RANK`."""
    prelude = "import os; rank = os.environ['RANK']\n"
    writes = (
        "(run / f'new-{rank}').write_text(str(os.getpid())); (run / f'new-{rank}').rename(run / f'worker-{rank}')\n"
    )
    both = "until(lambda: all((run / f'worker-{each}').exists() for each in '01'))\n"
    by_starter = make_plan(run, prelude + writes + both + script)
    (node,) = by_starter.nodes
    workers = ({"RANK": "0"}, {"RANK": "1"})
    return replace(by_starter, workers_per_node=2, nodes=(replace(node, workers=workers),))


def run_direct(run: RunDir, script: str) -> Attempt:
    return run_attempt(direct_plan(run, script), run, grace_s=5, requests=StopRequests(), on_poll=lambda: None)


def worker_pids(run: RunDir) -> list[int]:
    return [int((run.path / f"worker-{rank}").read_text()) for rank in range(2)]


def test_an_agent_starts_workers_itself_and_waits_for_all_of_them(run: RunDir) -> None:
    ends = "until((run / 'outcome.json').exists) if rank == '0' else outcome('finished')"
    attempt = run_direct(run, ends)
    assert (attempt.state, attempt.nodes[0].exit_code, attempt.nodes[0].starter_pid) == ("finished", 0, None)
    assert len(set(worker_pids(run))) == 2


def test_a_failed_worker_ends_the_others_of_its_agent_at_once(run: RunDir) -> None:
    """The other worker gets SIGTERM, as from torchrun. The node's exit code is that of the failed worker."""
    attempt = run_direct(run, "until(lambda: False) if rank == '0' else sys.exit(3)")
    (node,), (first, second) = attempt.nodes, worker_pids(run)
    assert (attempt.state, node.exit_code, node.external_kill) == ("failed", 3, "")
    assert node.worker_codes == {first: -signal.SIGTERM, second: 3}


def test_workers_of_a_killed_agent_die_with_it(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.coordinator.TERM_TO_KILL_S", 0.3)

    def send() -> None:
        wait_until(lambda: all((run.path / f"worker-{rank}").exists() for rank in range(2)), "both workers")
        agent = psutil.Process(worker_pids(run)[0]).parent()
        assert agent is not None
        agent.kill()

    thread = start_thread(send)
    attempt = run_direct(run, FOR_EVER)
    thread.join()
    assert attempt.nodes[0].external_kill == "its agent is gone"
    wait_until(lambda: not any(map(psutil.pid_exists, worker_pids(run))), "the end of the workers", deadline_s=5)


def test_a_worker_that_can_not_be_started_is_named(run: RunDir) -> None:
    (node,) = direct_plan(run, "pass").nodes
    missing = LaunchPlan(str(run.path), "cpu", 2, (replace(node, argv=("/no/such/program",)),))
    attempt = run_attempt(missing, run, grace_s=1, requests=StopRequests(), on_poll=lambda: None)
    assert "/no/such/program" in attempt.nodes[0].external_kill


def test_a_starter_that_can_not_be_started_is_named(run: RunDir) -> None:
    broken = make_plan(run, "pass")
    missing = LaunchPlan(broken.run_dir, "cpu", 1, (NodePlan(0, ("/no/such/program",), {}, str(run.path)),))
    attempt = run_attempt(missing, run, grace_s=1, requests=StopRequests(), on_poll=lambda: None)
    assert "/no/such/program" in attempt.nodes[0].external_kill


def test_output_of_the_starter_is_logged(run: RunDir) -> None:
    run_scripts(run, "print('out', flush=True); print('err', file=sys.stderr); outcome('finished')")
    assert run.starter_log(0).read_text().splitlines() == ["out", "err"]


def test_an_agent_whose_coordinator_was_killed_kills_its_processes(run: RunDir) -> None:
    """A kill -9 of the launcher closes the agent's stdin."""
    agent = AgentProcess()
    (node,) = make_plan(run, WITH_CHILD + FOR_EVER).nodes
    scratch = run.path / "scratch"
    scratch.mkdir()
    filled = node.fill_placeholders({ATTEMPT: "1"})
    log = str(run.starter_log(0))
    agent.send(do="start", argv=filled.argv, env=dict(filled.env), cwd=filled.cwd, log=log, scratch=str(scratch))
    process = psutil.Process(wait_for_starter(run, 0))
    (child,) = wait_until(process.children, "the starter's child")
    start = time.monotonic()
    agent.close()
    assert time.monotonic() - start < 30
    assert not process.is_running()
    assert not child.is_running()
    assert not scratch.exists()


def test_the_watcher_is_called_while_the_run_lasts(run: RunDir) -> None:
    calls: list[float] = []
    script = "time.sleep(0.5); outcome('finished')"
    run_attempt(
        make_plan(run, script), run, grace_s=1, requests=StopRequests(), on_poll=lambda: calls.append(time.monotonic())
    )
    assert len(calls) >= 3


def test_an_agent_that_does_not_answer_is_killed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example a suspended agent; its processes are killed with it."""
    monkeypatch.setattr("launcher.supervise.coordinator.TERM_TO_KILL_S", 0.3)
    monkeypatch.setattr("launcher.supervise.coordinator.KILL_TO_ABANDON_S", 0.3)
    monkeypatch.setattr("launcher.transport.agent_client.END_TIMEOUT_S", 0.3)
    agents: list[psutil.Process] = []

    def send() -> None:
        agent = psutil.Process(wait_for_starter(run, 0)).parent()
        assert agent is not None
        agents.append(agent)
        agent.suspend()
        (run.path / "suspended").touch()

    thread = start_thread(send)
    attempt = run_scripts(run, FOR_EVER, "until((run / 'suspended').exists); sys.exit(1)")
    thread.join()
    assert attempt.nodes[0].external_kill == "its agent does not answer"
    assert not agents[0].is_running()


def test_a_workers_crash_file_ends_the_attempt(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its starter still waits for it."""
    monkeypatch.setattr("launcher.supervise.coordinator.TERM_TO_KILL_S", 0.3)
    crash = "(run / 'attempts' / '0001-rank-0.json').write_text('{}')\n"
    attempt = run_scripts(run, crash + FOR_EVER, FOR_EVER)
    assert attempt.state == "failed"
    assert attempt.problem == ""


def test_an_agent_that_writes_no_json_counts_as_failed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = AgentProcess()
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


def test_a_helper_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.transport.local_commands.END_TIMEOUT_S", 0.3)
    answers = iter([False] * 5 + [True] * 100)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    assert run_foreground([sys.executable, "-c", code], stop=lambda: next(answers)) == -signal.SIGKILL
    assert run_foreground([sys.executable, "-c", "raise SystemExit(3)"], stop=lambda: False) == 3


IN_A_THREAD = """
import sys, threading
from launcher.transport.local_commands import run_captured
command = ("sh", "-c", 'echo $$ > "$1"; exec sleep 600', "sh", sys.argv[1])
threading.Thread(target=run_captured, args=(command,), kwargs={"timeout_s": 600}).start()
"""


def test_a_helper_started_by_a_thread_dies_with_the_process(tmp_path: Path) -> None:
    """Ray's worker processes have many threads: no Python code may run between fork and exec."""
    pid = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", IN_A_THREAD, str(pid)])
    helper = psutil.Process(int(wait_until(lambda: pid.exists() and pid.read_text(), "the helper")))
    process.kill()
    process.wait()
    wait_until(lambda: not helper.is_running() or helper.status() == psutil.STATUS_ZOMBIE, "the helper's end")


def test_a_helper_that_is_not_installed_is_reported() -> None:
    assert run_captured(("no-such-program",), timeout_s=1) == (
        127,
        "",
        "no-such-program: No such file or directory\n",
    )


def test_scratch_folders_have_names_that_are_valid_in_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a#b").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a#b"))
    scratch = Path(create_scratch_folder())
    assert scratch.parent == Path("/tmp")
    scratch.rmdir()


def test_after_the_outcome_waiting_for_nodes_has_a_timeout(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example for a suspended agent; the outcome counts."""
    monkeypatch.setattr("launcher.supervise.coordinator.OUTCOME_TO_TERM_S", 0.3)
    monkeypatch.setattr("launcher.supervise.coordinator.TERM_TO_KILL_S", 0.3)
    assert run_scripts(run, "outcome('finished')", FOR_EVER).state == "finished"


def no_space(*_: Any, **__: Any) -> None:
    raise OSError("No space left on device")


def test_an_attempt_whose_file_can_not_be_written_is_not_started(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt number fences off workers of earlier attempts."""
    monkeypatch.setattr("launcher.supervise.attempt.write_json", no_space)
    with pytest.raises(RunFailedError, match="can't be written, so no attempt was started: No space left"):
        run_scripts(run, "outcome('finished')")
    assert not (run.path / "pid-0").exists()


def test_a_disk_that_is_full_later_does_not_end_a_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write, paths = write_json, list[Path]()

    def full_after_the_first(path: Path, content: dict[str, Any]) -> None:
        paths.append(path)
        no_space() if len(paths) > 1 else write(path, content)

    monkeypatch.setattr("launcher.supervise.attempt.write_json", full_after_the_first)
    assert run_scripts(run, "outcome('finished')").state == "finished"
    assert len(paths) > 1
