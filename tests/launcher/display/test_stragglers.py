"""A worker that slows down the others is reported, and no other."""

import pytest

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.display.straggler_warnings import WINDOW_STEPS, StragglerDetector


@pytest.mark.parametrize(
    ("own_s", "named"),
    [((1.0, 1.0, 1.6), [2]), ((1.0, 1.4, 1.0), []), ((1.0, 2.0), [1]), ((5.0,), []), ((1.0, 3.0, 3.0, 1.0), [1, 2])],
)
def test_a_worker_that_takes_50_percent_longer_for_three_windows_is_reported_once(
    own_s: tuple[float, ...], named: list[int], run: RunDir
) -> None:
    stragglers, reports = StragglerDetector(run, 1, len(own_s)), list[str]()
    for window in range(8):
        write_progress(run, own_s, window)
        reports += stragglers.poll()
        assert not reports or window >= 3
    assert [int(text.split()[1]) for text in reports] == named


def test_one_slow_window_is_not_reported(run: RunDir) -> None:
    """An evaluation or other work on the machine can cause one."""
    stragglers = StragglerDetector(run, 1, 2)
    busy = [0.0, 0.0]
    for window in range(9):
        busy = [busy[0] + 1.0, busy[1] + (9.0 if window % 3 == 2 else 1.0)]
        for rank in (0, 1):
            write_json(run.rank_progress(rank), progress(window * WINDOW_STEPS, busy[rank] * WINDOW_STEPS))
        assert stragglers.poll() == []


def write_progress(run: RunDir, own_s: tuple[float, ...], window: int) -> None:
    step = window * WINDOW_STEPS
    for rank, seconds in enumerate(own_s):
        write_json(run.rank_progress(rank), progress(step, step * seconds))


def progress(step: int, busy_s: float) -> dict[str, object]:
    return {"attempt": 1, "step": step, "busy_s": busy_s, "host": "here"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.display.straggler_warnings.POLL_EVERY_S", 0.0)
