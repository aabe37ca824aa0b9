"""Hang detection from heartbeats: no heartbeat, busy outside of collectives, or all waiting."""

from typing import Any

import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.supervise import hang_detector as pulses_module
from launcher.supervise.hang_detector import Hang, HangDetector


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pulses_module, "time", clock)
    return clock


def write_heartbeat(run: RunDir, rank: int, *, beat: int, moves: int, **more: Any) -> None:
    progress = {"attempt": 1, "pid": 100 + rank, "host": "here", "state": "train", "step": 7, "waiting": False}
    write_json(run.rank_progress(rank), {**progress, "beat": beat, "moves": moves, **more}, durable=False)


def detect(run: RunDir, clock: Clock, *behaviours: dict[str, Any], seconds: int = 16) -> Hang | None:
    """Return the hang found within `seconds`, at a timeout of 10 s; workers have these behaviours from the third second
    on."""
    pulses = HangDetector(run, 1, len(behaviours), hang_timeout_s=10)
    for second in range(seconds):
        for rank, behaviour in enumerate(behaviours):
            has_changed = second >= 3
            beat = 3 if has_changed and behaviour.get("stopped") else second
            moves = 3 if has_changed and (behaviour.get("stuck") or behaviour.get("stopped")) else second
            more = {name: value for name, value in behaviour.items() if name not in ("stopped", "stuck")}
            write_heartbeat(run, rank, beat=beat, moves=moves, **(more if has_changed else {}))
        if hang := pulses.poll():
            return hang
        clock.now += 1
    return None


def test_workers_that_make_progress_do_not_hang(run: RunDir, clock: Clock) -> None:
    assert detect(run, clock, {}, {"waiting": True}, seconds=60) is None


@pytest.mark.fault("F3", "F32")
def test_a_stopped_process_has_no_heartbeat(run: RunDir, clock: Clock) -> None:
    hang = detect(run, clock, {"stuck": True, "waiting": True}, {"stopped": True})
    assert hang is not None
    assert (hang.hanging_ranks, hang.pids) == ((1,), {0: 100, 1: 101})
    assert hang.text.startswith("rank 1 (pid 101 on here) in train after step 7: hangs, for 10 s or more")
    assert "has no heartbeat" in hang.text


def test_a_worker_outside_of_collectives_is_the_one_that_hangs(run: RunDir, clock: Clock) -> None:
    hang = detect(run, clock, {"stuck": True, "waiting": True}, {"stuck": True}, {"stuck": True, "waiting": True})
    assert hang is not None
    assert hang.hanging_ranks == (1,)
    assert "it waits for no other worker" in hang.text


def test_of_workers_outside_of_collectives_the_one_with_the_least_progress_hangs(run: RunDir, clock: Clock) -> None:
    """The other worker waits without knowing it, for example in a GPU kernel, and is one collective ahead."""
    pulses = HangDetector(run, 1, 2, hang_timeout_s=10)
    for rank, moves in ((0, 8), (1, 7)):
        write_heartbeat(run, rank, beat=1, moves=moves)
    assert pulses.poll() is None
    clock.now += 8
    for rank, moves in ((0, 8), (1, 7)):
        write_heartbeat(run, rank, beat=9, moves=moves)
    pulses.poll()
    clock.now += 3
    hang = pulses.poll()
    assert hang is not None
    assert hang.hanging_ranks == (1,)


def test_on_a_full_disk_no_hang_is_reported(run: RunDir, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker can write a heartbeat then."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(pulses_module, "write_json", full)
    assert detect(run, clock, {"stuck": True}, seconds=60) is None


def test_if_all_workers_wait_the_network_is_suspected(run: RunDir, clock: Clock) -> None:
    hang = detect(run, clock, *[{"stuck": True, "waiting": True}] * 2)
    assert hang is not None
    assert (hang.hanging_ranks, "is the network between them cut?" in hang.text) == ((), True)


@pytest.mark.parametrize(
    ("state", "seconds"), [("setup", 122), ("save", 122), ("compile", 1802), ("finished", 10_000), ("stopped", 10_000)]
)
def test_some_states_may_take_longer(state: str, seconds: int, run: RunDir, clock: Clock) -> None:
    assert detect(run, clock, {"stuck": True, "state": state}, seconds=seconds) is None


def test_a_worker_that_never_starts_is_reported(run: RunDir, clock: Clock) -> None:
    """A heartbeat of an earlier attempt's worker does not count."""
    write_heartbeat(run, 0, beat=1, moves=1, attempt=7)
    pulses = HangDetector(run, 1, 1, hang_timeout_s=10)
    assert pulses.poll() is None
    clock.now += 119
    assert pulses.poll() is None
    clock.now += 2
    hang = pulses.poll()
    assert hang is not None
    assert hang.text.startswith("rank 0, which has not started: hangs")


def test_a_process_id_is_mapped_to_its_rank_until_the_worker_is_finished(run: RunDir, clock: Clock) -> None:
    pulses = HangDetector(run, 1, 2, hang_timeout_s=10)
    write_heartbeat(run, 1, beat=1, moves=1)
    assert (pulses.find_rank(101, (0, 1)), pulses.find_rank(4711, (0, 1)), pulses.find_rank(101, (0,))) == (
        1,
        None,
        None,
    )
    write_heartbeat(run, 1, beat=1, moves=1, state="finished")
    assert pulses.find_rank(101, (0, 1)) is None
