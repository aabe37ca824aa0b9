"""A worker that holds up the others is named, and only that one."""

import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.display.stragglers import WINDOW_STEPS, Stragglers


@pytest.mark.parametrize(
    ("own_s", "named"),
    [((1.0, 1.0, 1.6), [2]), ((1.0, 1.4, 1.0), []), ((1.0, 2.0), [1]), ((5.0,), []), ((1.0, 3.0, 3.0, 1.0), [1, 2])],
)
def test_who_takes_half_as_long_again_for_three_windows_is_named_once(
    own_s: tuple[float, ...], named: list[int], run: RunDir
) -> None:
    stragglers, told = Stragglers(run, 1, len(own_s)), list[str]()
    for window in range(8):
        show(run, own_s, window)
        told += stragglers.look()
        assert not told or window >= 3
    assert [int(text.split()[1]) for text in told] == named


def test_one_slow_window_names_nobody(run: RunDir) -> None:
    """As an evaluation or a busy moment of the machine makes it."""
    stragglers = Stragglers(run, 1, 2)
    busy = [0.0, 0.0]
    for window in range(9):
        busy = [busy[0] + 1.0, busy[1] + (9.0 if window % 3 == 2 else 1.0)]
        for rank in (0, 1):
            write_json(run.rank_progress(rank), shown(window * WINDOW_STEPS, busy[rank] * WINDOW_STEPS))
        assert stragglers.look() == []


def show(run: RunDir, own_s: tuple[float, ...], window: int) -> None:
    step = window * WINDOW_STEPS
    for rank, seconds in enumerate(own_s):
        write_json(run.rank_progress(rank), shown(step, step * seconds))


def shown(step: int, busy_s: float) -> dict[str, object]:
    return {"attempt": 1, "step": step, "busy_s": busy_s, "host": "here"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.display.stragglers.LOOK_EVERY_S", 0.0)
