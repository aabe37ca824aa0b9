"""Restart policy: which failures get another attempt, with which nodes. Attempts are faked."""

import json
from typing import Any

import pytest

from fmfsd.errors import ConfigError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.config.launch_config import LaunchConfig, parse_node_limits
from launcher.diagnostics.drill.faults import FAULTS, parse_faults
from launcher.plan.launch_plan import LaunchPlan, NodePlan
from launcher.supervise.attempt import Attempt, NodeState
from launcher.supervise.failure_report import Failure
from launcher.supervise.restarts import RestartBudget, RestartLoop, RunResult
from launcher.supervise.stop_requests import StopRequests
from tests.helpers.stand_ins import NoAgent, write_crash_file

KILLED = Failure("rank 1 (pid 4711) after step 7: killed by SIGKILL")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.restarts.FIRST_BACKOFF_S", 0.0)


def test_a_new_checkpoint_resets_the_count_of_restarts() -> None:
    restarts = RestartBudget(allowed=2)
    failures = [Failure(f"boom {letter}") for letter in "abcdefg"]
    progressed = [False, False, True, False, True, False, False]
    refusals = [restarts.count_restart(one, progressed=more) for one, more in zip(failures, progressed, strict=True)]
    assert refusals == [*[""] * 6, "2 restarts without a new checkpoint in between (--max-restarts)"]


def test_the_same_failure_twice_without_a_new_checkpoint_is_final() -> None:
    restarts = RestartBudget(allowed=9)
    again = Failure("rank 0 (pid 99) after step 8: killed by SIGKILL")
    assert [restarts.count_restart(one, progressed=True) for one in (KILLED, again)] == ["", ""]
    assert (
        restarts.count_restart(again, progressed=False) == "the same failure twice without a new checkpoint in between"
    )


def test_a_failure_that_would_repeat_is_not_retried() -> None:
    refusal = RestartBudget(allowed=9).count_restart(Failure("NaN", worth_another_attempt=False), progressed=True)
    assert refusal == "another attempt would fail in the same way"


def test_pauses_double_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.supervise.restarts.FIRST_BACKOFF_S", 1.0)
    assert [RestartBudget(9, used).backoff_s for used in (1, 2, 3, 7, 30)] == [1, 2, 4, 60, 60]


class FakeAttempts:
    """Starts attempts that end as given: each ending is the lost nodes of a failed attempt, or the final state."""

    def __init__(self, run: RunDir, *endings: tuple[int, ...] | str) -> None:
        self.run, self.endings, self.slots, self.messages = run, list(endings), list[tuple[int, ...]](), list[str]()

    def plan_of(self, slots: tuple[int, ...]) -> LaunchPlan:
        self.slots.append(slots)
        nodes = tuple(NodePlan(number, (), {}, "/") for number, _ in enumerate(slots))
        return LaunchPlan(str(self.run.path), "cpu", 8, nodes)

    def start(self, plan: LaunchPlan) -> Attempt:
        ending = self.endings.pop(0)
        nodes = [NodeState(NoAgent(), exit_code=1, done=True) for _ in plan.nodes]
        attempt = Attempt(self.run, self.run.last_attempt() + 1, nodes, plan.num_workers)
        attempt.state = ending if isinstance(ending, str) else "failed"
        for number in ending if not isinstance(ending, str) else ():
            nodes[number].done = False
            nodes[number].apply_event({"event": "gone"})
        attempt.write_record()
        return attempt

    def run_to_end(self, **launch: Any) -> RunResult:
        config = LaunchConfig(**{"nodes": 4, "gpus": 8, **launch})
        return RestartLoop(
            config, self.run, StopRequests(), self.plan_of, self.start, self.messages.append, 64
        ).run_until_end()


def test_a_run_continues_with_as_many_remaining_nodes_as_divide_the_shards(run: RunDir) -> None:
    """4 nodes of 8 workers that lose one continue with 16 workers, as 24 do not divide 64 shards."""
    fake = FakeAttempts(run, (1,), (0,), "finished")
    ended = fake.run_to_end(min_nodes=1)
    assert (ended.attempt.state, fake.slots) == ("finished", [(0, 1, 2, 3), (0, 2), (2,)])
    assert "3 of 4 nodes remain: resuming with 16 workers on 2; workers must divide data.shards 64" in fake.messages
    assert "1 of 2 nodes remain: resuming with 8 workers on 1" in fake.messages


def test_if_all_nodes_are_lost_at_once_all_are_started_again(run: RunDir) -> None:
    """The launcher itself may have been suspended or disconnected."""
    fake = FakeAttempts(run, (0, 1, 2, 3), "finished")
    assert fake.run_to_end(min_nodes=1).attempt.state == "finished"
    assert fake.slots == [(0, 1, 2, 3)] * 2


def test_with_fewer_nodes_than_the_minimum_a_run_ends(run: RunDir) -> None:
    fake = FakeAttempts(run, (1,))
    ended = fake.run_to_end(min_nodes=3)
    assert ended.failure is not None
    assert ended.refusal == "2 of the 3 remaining nodes are usable, fewer than the minimum of --elastic"


def test_without_elastic_a_lost_node_is_started_again(run: RunDir) -> None:
    fake = FakeAttempts(run, (1,), "finished")
    assert fake.run_to_end().attempt.state == "finished"
    assert fake.slots == [(0, 1, 2, 3)] * 2


def test_the_cause_of_a_failed_attempt_is_in_its_file_and_shown(run: RunDir) -> None:
    write_crash_file(run, 1, "boom", time=1.0, kind="ValueError")
    fake = FakeAttempts(run, (), "stopped")
    fake.run_to_end()
    assert "ValueError: boom" in run.attempt(1).read_text()
    assert fake.messages[0].startswith("attempt 1 failed: rank 1 (node 0, here) after step 7: ValueError: boom")
    assert fake.messages[1] == "starting again from the beginning in 0 s, restart 1 of 3"


def test_progress_is_a_checkpoint_later_than_the_one_the_attempt_resumed(run: RunDir) -> None:
    """A damaged checkpoint with a later step does not count."""
    fake = FakeAttempts(run, (), (), (), "finished")
    (run.checkpoints / "step-00000008").mkdir()
    for attempt, resumed_step in ((1, 4), (2, 8), (3, 8)):
        write_json(run.rank_progress(0), {"attempt": attempt, "went_on_after": resumed_step})
        failed = Attempt(run, attempt, [], 1)
        recovery = RestartLoop(LaunchConfig(), run, StopRequests(), fake.plan_of, fake.start, fake.messages.append, 64)
        assert recovery._has_progressed(failed) == (resumed_step == 4)
    assert not recovery._has_progressed(Attempt(run, 9, [], 1))


def test_a_stop_request_between_two_attempts_ends_the_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is stopped: nothing is running, so nothing is lost. After an earlier stop request the failure counts."""
    monkeypatch.setattr("launcher.supervise.restarts.FIRST_BACKOFF_S", 60.0)
    (run.checkpoints / "step-00000004").mkdir()
    for stopped_before in (False, True):
        fake, requests = FakeAttempts(run, ()), StopRequests()
        stop_first = requests.request_stop if stopped_before else lambda: None
        stop_first()
        recovery = RestartLoop(LaunchConfig(nodes=4), run, requests, fake.plan_of, fake.start, fake.messages.append, 64)
        run.stop_request.touch()
        ended = recovery.run_until_end()
        assert (ended.attempt.state, ended.refusal) == (
            ("failed", "a stop was requested") if stopped_before else ("stopped", "")
        )
    assert json.loads(run.outcome.read_text())["step"] == 4


@pytest.mark.parametrize(
    ("nodes", "elastic", "expected"),
    [
        (None, None, (None, None)),
        (3, None, (3, None)),
        (None, "1:4", (4, 1)),
        (4, "2:4", (4, 2)),
        (None, "2:2", (2, 2)),
    ],
)
def test_elastic_sets_the_initial_and_the_minimum_number_of_nodes(
    nodes: int | None, elastic: str | None, expected: tuple[int, int | None]
) -> None:
    assert parse_node_limits(nodes, elastic) == expected


@pytest.mark.parametrize("elastic", ["4:1", "0:2", "2", "1:2:3", "a:b", "", "-1:2", "1:9999999"])
def test_an_invalid_elastic_range_is_refused(elastic: str) -> None:
    with pytest.raises(ConfigError, match="expected MIN:MAX"):
        parse_node_limits(None, elastic)
    with pytest.raises(ConfigError, match="leave --nodes out"):
        parse_node_limits(2, "1:4")


def test_drill_faults_are_deduplicated_and_all_means_every_one() -> None:
    assert parse_faults("hang,preempt,hang") == ("hang", "preempt")
    assert parse_faults("all") == tuple(FAULTS)
