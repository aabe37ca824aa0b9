"""Failure reports: finding the root cause from the workers' crash files and exit codes."""

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from launcher.supervise.attempt import Attempt, NodeState
from launcher.supervise.failure_report import Failure, find_first_failure, render_page
from launcher.supervise.hang_detector import Hang
from tests.helpers.stand_ins import NoAgent, write_crash_file

RESET = "[/x/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer"


def write_progress(run: RunDir, rank: int) -> None:
    content = {"rank": rank, "pid": 100 + rank, "host": "here", "step": 7, "attempt": 1, "peak_memory_bytes": 3 << 29}
    write_json(run.rank_progress(rank), content)


def attempt(run: RunDir, *codes: int | None, trouble: str = "") -> Attempt:
    nodes = [
        NodeState(NoAgent(), exit_code=code, trouble=trouble if number == 0 else "")
        for number, code in enumerate(codes)
    ]
    return Attempt(run, 1, nodes, num_workers=2)


def report_lines(run: RunDir, failure: Failure) -> list[str]:
    """Return the lines of the report."""
    return render_page(run, failure, history="no attempt follows", command="fmfsd-launch x").splitlines()


def test_the_first_error_is_the_cause_and_lost_connections_are_not(run: RunDir) -> None:
    write_crash_file(run, 0, RESET, time=1.0)
    write_crash_file(run, 3, "boom", time=2.0, kind="ValueError")
    write_crash_file(run, 1, "later", time=3.0)
    failure = find_first_failure(run, attempt(run, 1, 1))
    assert failure.cause == "rank 3 (node 1, here) after step 7: ValueError: boom"
    assert failure.victims == (0, 1)
    assert failure.detail == "Traceback of rank 3\n"


def test_an_expected_error_has_no_traceback(run: RunDir) -> None:
    write_crash_file(run, 0, "the loss is not finite", time=1.0, kind="NonFiniteLossError", expected=True)
    first, *others = report_lines(run, find_first_failure(run, attempt(run, 1)))
    assert first == "run failed at 00:00:01 UTC: rank 0 (node 0, here) after step 7: the loss is not finite"
    assert not any("Traceback" in line or "likely to help" in line for line in others)


def test_a_worker_that_was_killed_is_named_with_its_signal(run: RunDir) -> None:
    write_progress(run, 0)
    write_progress(run, 1)
    write_crash_file(run, 0, RESET, time=1.0)
    run.node_logs(0).mkdir(parents=True)
    run.starter_log(0).write_text("  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 101)\n")
    failure = find_first_failure(run, attempt(run, 1))
    assert failure.cause.startswith("rank 1 (pid 101 on here) after step 7: killed by SIGKILL: by a user, or")
    assert failure.victims == (0,)
    killed = attempt(run, 1)
    killed.nodes[0].oom_kills = 1
    assert find_first_failure(run, killed).cause.endswith("killed by SIGKILL: out of memory, at 1.50 GiB")


def test_the_worker_that_exited_first_is_the_cause_if_its_exit_code_is_unknown(run: RunDir) -> None:
    """For example if its starter still waits for the other workers when it is killed."""
    for rank in (0, 1):
        write_progress(run, rank)
    dead = attempt(run, -9)
    dead.dead_rank, dead.nodes[0].ended_by_us = 1, True
    assert find_first_failure(run, dead).cause == "rank 1 (pid 101 on here) after step 7: ended without an error report"


def test_an_exit_code_that_the_agent_saw_is_reported(run: RunDir) -> None:
    """A worker that was terminated together with the others is not the cause."""
    for rank in (0, 1):
        write_progress(run, rank)
    killed = attempt(run, 1)
    killed.nodes[0].worker_codes |= {100: -15, 101: -11}
    failure = find_first_failure(run, killed)
    assert failure.cause == "rank 1 (pid 101 on here) after step 7: killed by SIGSEGV"


def test_the_last_exit_code_in_deepspeeds_log_is_that_of_the_first_dead_worker(run: RunDir) -> None:
    """The log line names no process. Lines of an earlier attempt precede the start of this process."""
    for rank in (0, 1):
        write_progress(run, rank)
    run.node_logs(0).mkdir(parents=True)
    spawned = [f"[INFO] process {pid} spawned with command: ['python']\n" for pid in (90, 91, 100, 101)]
    exits = [f"[ERROR] ['python'] exits with return code = {code}\n" for code in (7, -9)]
    run.starter_log(0).write_text("".join([*spawned[:2], exits[0], *spawned[2:], exits[1]]))
    dead = attempt(run, 1)
    dead.dead_rank = 1
    assert find_first_failure(run, dead).cause.startswith("rank 1 (pid 101 on here) after step 7: killed by SIGKILL")
    run.starter_log(0).write_text("".join([*spawned[:2], exits[0], *spawned[2:]]))
    assert find_first_failure(run, dead).cause == "rank 1 (pid 101 on here) after step 7: ended without an error report"


def test_a_worker_that_its_starter_terminated_is_not_the_cause(run: RunDir) -> None:
    write_progress(run, 1)
    write_crash_file(run, 0, RESET, time=1.0)
    run.node_logs(0).mkdir(parents=True)
    run.starter_log(0).write_text("exitcode  : -15 (pid: 101)\n")
    assert find_first_failure(run, attempt(run, 1)).cause.startswith("rank 0")


def test_a_killed_agent_or_starter_comes_before_its_victims(run: RunDir) -> None:
    write_crash_file(run, 1, RESET, time=1.0)
    assert (
        find_first_failure(run, attempt(run, None, 1, trouble="its agent is gone")).cause == "node 0: its agent is gone"
    )
    assert find_first_failure(run, attempt(run, 1, -9)).cause == "node 1: its starter was killed by SIGKILL"


def test_without_a_crash_file_the_starters_log_is_shown(run: RunDir) -> None:
    run.node_logs(0).mkdir(parents=True)
    run.starter_log(0).write_text("\n".join(f"line {number}" for number in range(50)))
    failure = find_first_failure(run, attempt(run, 2))
    assert failure.cause == "node 0: its starter ended with exit code 2"
    assert failure.detail.splitlines()[-1] == "line 49"
    assert len(failure.detail.splitlines()) == 12


def test_a_failure_without_any_information_is_reported(run: RunDir) -> None:
    assert find_first_failure(run, attempt(run, 0)).cause == "the workers ended without an outcome"


def test_the_report_ends_with_advice_logs_and_the_command_to_resume(run: RunDir) -> None:
    write_crash_file(run, 2, "CUDA out of memory", time=1.0, kind="OutOfMemoryError")
    write_crash_file(run, 0, RESET, time=2.0)
    log = run.rank_log(1, 2)
    log.parent.mkdir(parents=True)
    log.touch()
    first, _, *rest = report_lines(run, find_first_failure(run, attempt(run, 1, 1)))
    assert first == "Traceback of rank 2"
    assert rest[:3] == [
        "ended because of it: rank 0",
        "likely to help: more workers with a GPU or a machine each; or, which is another run, a smaller "
        "train.micro_batch",
        "no attempt follows",
    ]
    assert rest[3:] == [f"logs: {log}", "to start again (no checkpoint yet):", "  fmfsd-launch x"]
    (run.checkpoints / "step-00000007").mkdir()
    assert "to resume after step 7:" in report_lines(run, find_first_failure(run, attempt(run, 1, 1)))


def test_a_run_that_can_not_resume_gets_no_resume_command(run: RunDir) -> None:
    write_crash_file(run, 0, "no checkpoint there can be used", time=1.0, expected=True)
    write_json(run.crash_report(1, 0), {**read_json(run.crash_report(1, 0)), "resumable": False})
    failure = find_first_failure(run, attempt(run, 1))
    assert not failure.resumable
    assert report_lines(run, failure)[-1] == f"logs: {run.logs}"


def test_a_worker_that_reports_the_fault_of_another_is_not_the_cause(run: RunDir) -> None:
    write_crash_file(run, 0, "the weights are no longer the same: another worker's differ", time=1.0, expected=True)
    write_crash_file(run, 1, "the weights are no longer the same: this worker's differ", time=2.0, expected=True)
    assert find_first_failure(run, attempt(run, 1)).rank == 1


def test_a_hang_is_reported_with_the_stack_of_the_hanging_worker(run: RunDir) -> None:
    run.node_logs(1).mkdir(parents=True)
    run.rank_log(1, 1).write_text(
        "--- attempt 0, rank 1 of 2\nCurrent thread 0x02 (most recent call first):\n  File old\n--- attempt 1, rank 1\n"
        "Thread 0x01 (most recent call first):\n  File a\nCurrent thread 0x02 (most recent call first):\n  File b\n"
    )
    hanging = attempt(run, -9, -9)
    hanging.hang = Hang("rank 1: hangs, for 10 s or more", (1,), {0: 100, 1: 101})
    hanging.problem = hanging.hang.text
    failure = find_first_failure(run, hanging)
    assert (failure.rank, failure.node, failure.victims) == (1, 1, (0,))
    assert failure.detail == "stack of rank 1, innermost call first:\n  File b"
    assert "raise --hang-timeout" in failure.advice


def test_failures_that_differ_only_in_numbers_have_the_same_fingerprint() -> None:
    one, other = (Failure(f"rank {rank} (pid 1{rank}) after step 2.5: at 0x{rank}f") for rank in (1, 2))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != Failure("rank 1 (pid 11) before step 2: at 0x1f").fingerprint
