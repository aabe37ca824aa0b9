"""Who hangs is found from what workers show: without a pulse, busy with themselves, or all waiting."""

from typing import Any

import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.supervise import hang_detector as pulses_module
from launcher.supervise.hang_detector import Hang, Pulses


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pulses_module, "time", clock)
    return clock


def show(run: RunDir, rank: int, *, beat: int, moves: int, **more: Any) -> None:
    shown = {"attempt": 1, "pid": 100 + rank, "host": "here", "state": "train", "step": 7, "waiting": False}
    write_json(run.rank_progress(rank), {**shown, "beat": beat, "moves": moves, **more}, durable=False)


def watched(run: RunDir, clock: Clock, *lives: dict[str, Any], seconds: int = 16) -> Hang | None:
    """What is found within so many seconds of a timeout of 10, of workers with these lives from the third second on."""
    pulses = Pulses(run, 1, len(lives), hang_timeout_s=10)
    for second in range(seconds):
        for rank, life in enumerate(lives):
            late = second >= 3
            beat = 3 if late and life.get("stopped") else second
            moves = 3 if late and (life.get("stuck") or life.get("stopped")) else second
            more = {name: value for name, value in life.items() if name not in ("stopped", "stuck")}
            show(run, rank, beat=beat, moves=moves, **(more if late else {}))
        if hang := pulses.look():
            return hang
        clock.now += 1
    return None


def test_workers_that_move_do_not_hang(run: RunDir, clock: Clock) -> None:
    assert watched(run, clock, {}, {"waiting": True}, seconds=60) is None


@pytest.mark.fault("F3", "F32")
def test_a_stopped_process_has_no_pulse(run: RunDir, clock: Clock) -> None:
    hang = watched(run, clock, {"stuck": True, "waiting": True}, {"stopped": True})
    assert hang is not None
    assert (hang.blamed, hang.pids) == ((1,), {0: 100, 1: 101})
    assert hang.text.startswith("rank 1 (pid 101 on here) in train after step 7: hangs, for 10 s or more")
    assert "has no heartbeat" in hang.text


def test_a_worker_that_waits_for_nobody_is_the_one_that_hangs(run: RunDir, clock: Clock) -> None:
    hang = watched(run, clock, {"stuck": True, "waiting": True}, {"stuck": True}, {"stuck": True, "waiting": True})
    assert hang is not None
    assert hang.blamed == (1,)
    assert "it waits for no other worker" in hang.text


def test_of_those_that_wait_for_nobody_the_one_that_came_least_far_hangs(run: RunDir, clock: Clock) -> None:
    """The other waits where it can't tell, as in a kernel on a GPU, and is a call ahead."""
    pulses = Pulses(run, 1, 2, hang_timeout_s=10)
    for rank, moves in ((0, 8), (1, 7)):
        show(run, rank, beat=1, moves=moves)
    assert pulses.look() is None
    clock.now += 8
    for rank, moves in ((0, 8), (1, 7)):
        show(run, rank, beat=9, moves=moves)
    pulses.look()
    clock.now += 3
    hang = pulses.look()
    assert hang is not None
    assert hang.blamed == (1,)


def test_on_a_disk_that_takes_no_files_nobody_hangs(run: RunDir, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can show that it moves, then."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(pulses_module, "write_json", full)
    assert watched(run, clock, {"stuck": True}, seconds=60) is None


def test_if_all_wait_it_is_what_lies_between_them(run: RunDir, clock: Clock) -> None:
    hang = watched(run, clock, *[{"stuck": True, "waiting": True}] * 2)
    assert hang is not None
    assert (hang.blamed, "is the network between them cut?" in hang.text) == ((), True)


@pytest.mark.parametrize(
    ("state", "seconds"), [("setup", 122), ("save", 122), ("compile", 1802), ("finished", 10_000), ("stopped", 10_000)]
)
def test_some_states_may_take_longer(state: str, seconds: int, run: RunDir, clock: Clock) -> None:
    assert watched(run, clock, {"stuck": True, "state": state}, seconds=seconds) is None


def test_a_worker_that_never_shows_up_is_missed_at_last(run: RunDir, clock: Clock) -> None:
    """What an earlier attempt's worker has shown is no sign of life."""
    show(run, 0, beat=1, moves=1, attempt=7)
    pulses = Pulses(run, 1, 1, hang_timeout_s=10)
    assert pulses.look() is None
    clock.now += 119
    assert pulses.look() is None
    clock.now += 2
    hang = pulses.look()
    assert hang is not None
    assert hang.text.startswith("rank 0, which has not started: hangs")


def test_a_process_is_known_by_its_number_until_it_says_that_it_is_done(run: RunDir, clock: Clock) -> None:
    pulses = Pulses(run, 1, 2, hang_timeout_s=10)
    show(run, 1, beat=1, moves=1)
    assert (pulses.rank_of(101, (0, 1)), pulses.rank_of(4711, (0, 1)), pulses.rank_of(101, (0,))) == (1, None, None)
    show(run, 1, beat=1, moves=1, state="finished")
    assert pulses.rank_of(101, (0, 1)) is None
