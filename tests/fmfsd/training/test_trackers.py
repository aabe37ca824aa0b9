"""Trackers show what metrics.jsonl has, each record once, and whatever becomes of them is no more than a warning."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

import pytest

from fmfsd.run.metrics import MetricsLog
from fmfsd.run.run_dir import RunDir
from fmfsd.trackers import Record, Trackers, build_trackers
from fmfsd.trackers.feed import Feed
from fmfsd.trackers.tensorboard import EventFile
from tests.helpers.runs import make_run, tiny_config
from tests.helpers.tracked import hyperparameters, in_float32, in_tensorboard, in_wandb, points

SHORT_S = 3.0
NO_KEY = "a" * 40


class Broken:
    """Shows `takes` records; then it waits for `wait`, or raises."""

    def __init__(self, takes: int, wait: Event | None = None) -> None:
        self.left, self.wait = takes, wait

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, record: Record) -> None:
        self.left -= 1
        if self.left < 0 and self.wait is not None:
            self.wait.wait()
        elif self.left < 0:
            raise OSError("no network")


def record_some(run: RunDir, trackers: Trackers, *, kept: int = 0, steps: range = range(1, 6)) -> float:
    """A part of a run; the longest that it was held up by a record, in seconds."""
    log = MetricsLog(run.metrics, time.time())
    log.show = trackers.show
    longest = 0.0
    with trackers:
        log.keep(kept)
        for step in steps:
            began = time.monotonic()
            log.write(step=step, epoch=1, split="train", loss=step / 3, lr=0.1)
            log.write(step=step, epoch=1, split="valid", deepest_top1=step / 7)
            longest = max(longest, time.monotonic() - began)
        log.close()
    return longest


@pytest.fixture
def run(tiny_root: Path, tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", tiny_config(tiny_root, "tracker=[tensorboard]", "distill.alpha=0.25"))


@pytest.fixture
def short_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("feed", "weights_and_biases"):
        monkeypatch.setattr(f"fmfsd.trackers.{module}.CLOSING_S", SHORT_S)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def trackers_of(run: RunDir, tiny_root: Path, warnings: list[str], *changes: str) -> Trackers:
    return build_trackers(run, tiny_config(tiny_root, *changes), 1e9, warn=warnings.append)


def test_tensorboard_has_each_record_once_after_a_part_was_done_again(run: RunDir, tiny_root: Path) -> None:
    """The first part left a file that ends in the middle of a record, as after a kill."""
    told: list[str] = []
    changes = ("tracker=[tensorboard]", "distill.alpha=0.25", "train.deterministic=true")
    record_some(run, trackers_of(run, tiny_root, told, *changes))
    (first,) = run.tensorboard.iterdir()
    first.write_bytes(first.read_bytes()[:-9])
    record_some(run, trackers_of(run, tiny_root, told, *changes), kept=4, steps=range(3, 9))
    assert in_tensorboard(run) == in_float32(points(run))
    assert [step for step, _ in in_tensorboard(run)["train/loss"]] == list(range(1, 9))
    shown = hyperparameters(run)
    assert (shown["distill.alpha"], shown["train.deterministic"], shown["tracker"]) == (0.25, True, "['tensorboard']")
    assert told == []


def test_a_tensorboard_that_is_running_forgets_what_a_new_start_shows_again(run: RunDir, tiny_root: Path) -> None:
    """It has read the old file to its end when the new one appears."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record_some(run, trackers_of(run, tiny_root, [], "tracker=[tensorboard]"))
    running = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0})
    running.Reload()
    record_some(run, trackers_of(run, tiny_root, [], "tracker=[tensorboard]"), kept=4, steps=range(3, 9))
    running.Reload()
    assert [each.step for each in running.Scalars("train/loss")] == list(range(1, 9))


def test_a_tracker_that_raises_is_a_warning_and_the_others_go_on(run: RunDir) -> None:
    told: list[str] = []
    broken = Feed("broken", lambda: Broken(3), told.append)
    whole = Feed("tensorboard", lambda: EventFile(run.tensorboard, {}, 1e9), told.append)
    record_some(run, Trackers([broken, whole]))
    assert told == ["tracker broken failed and gets no more records: no network"]
    assert in_tensorboard(run) == in_float32(points(run))


def test_a_tracker_that_hangs_is_left_after_its_time(run: RunDir, short_closing: None) -> None:
    told: list[str] = []
    go_on = Event()
    began = time.monotonic()
    feed = Feed("hanging", lambda: Broken(1, go_on), told.append)
    assert record_some(run, Trackers([feed])) < 10
    assert SHORT_S <= time.monotonic() - began < SHORT_S + 20
    assert told == ["tracker hanging: not finished 3 s after the run's end, so records may be missing"]
    go_on.set()


def test_a_failed_run_waits_for_no_tracker() -> None:
    go_on = Event()
    began = time.monotonic()
    trackers = Trackers([Feed("hanging", lambda: Broken(0, go_on), pytest.fail)])
    trackers.show({})
    trackers.__exit__(RuntimeError, RuntimeError(), None)
    assert time.monotonic() - began < 20
    go_on.set()


def test_a_full_disk_is_a_warning(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    file = EventFile(run.tensorboard, {}, 1e9)
    file.__enter__()
    file._file.close()
    file._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0)
    monkeypatch.setattr(EventFile, "__enter__", lambda self: self)
    record_some(run, Trackers([Feed("tensorboard", lambda: file, told.append)]))
    assert told == ["tracker tensorboard failed and gets no more records: [Errno 28] No space left on device"]


@pytest.mark.usefixtures("processes")
def test_wandb_that_is_not_installed_is_a_warning(
    run: RunDir, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "wandb.py").write_text("raise ImportError('No module named wandb')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}:{os.environ.get('PYTHONPATH', '')}")
    told: list[str] = []
    record_some(run, trackers_of(run, tiny_root, told, "tracker=[wandb]"))
    assert told == ["tracker wandb failed and gets no more records: No module named wandb"]


@pytest.mark.usefixtures("processes")
def test_wandb_has_the_very_values_offline(run: RunDir, tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of them after a part was done again, under the same id."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    told: list[str] = []
    record_some(run, trackers_of(run, tiny_root, told, "tracker=[wandb]"))
    known_as = run.wandb_id.read_text()
    record_some(run, trackers_of(run, tiny_root, told, "tracker=[wandb]"), kept=4, steps=range(3, 9))
    assert told == []
    assert in_wandb(run) == points(run)
    assert {path.stem for path in run.wandb_id.parent.glob("offline-run-*/*.wandb")} == {f"run-{known_as}"}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("answers", ["refuses", "is silent"])
def test_wandb_without_its_server_is_left_after_its_time(
    answers: str, run: RunDir, tiny_root: Path, silent_server: str, short_closing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture of all tests finds the processes, if one were left."""
    monkeypatch.setenv("WANDB_BASE_URL", silent_server if answers == "is silent" else "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", NO_KEY)
    told: list[str] = []
    began = time.monotonic()
    assert record_some(run, trackers_of(run, tiny_root, told, "tracker=[wandb]")) < 1.0
    assert time.monotonic() - began < SHORT_S + 20
    assert told == [
        "tracker wandb failed and gets no more records: W&B has not taken all records 2 s after the run's end"
    ]
