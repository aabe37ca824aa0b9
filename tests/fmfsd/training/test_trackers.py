"""Trackers receive each record of metrics.jsonl once, and their failures are only warnings."""

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
from fmfsd.trackers.feed import TrackerThread
from fmfsd.trackers.tensorboard import EventFile
from tests.helpers.runs import make_run, tiny_config
from tests.helpers.tracked import read_hyperparameters, read_metrics, read_tensorboard, read_wandb, to_float32

SHORT_S = 3.0
NO_KEY = "a" * 40


class Broken:
    """A tracker that accepts `num_accepted` records; then it blocks on `wait`, or raises an error."""

    def __init__(self, num_accepted: int, wait: Event | None = None) -> None:
        self.remaining, self.wait = num_accepted, wait

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def log(self, record: Record) -> None:
        self.remaining -= 1
        if self.remaining < 0 and self.wait is not None:
            self.wait.wait()
        elif self.remaining < 0:
            raise OSError("no network")


def record_some(run: RunDir, trackers: Trackers, *, num_kept: int = 0, steps: range = range(1, 6)) -> float:
    """Write the records of `steps`; return the longest time that writing a record took, in seconds."""
    log = MetricsLog(run.metrics, time.time())
    log.on_record = trackers.log
    longest = 0.0
    with trackers:
        log.truncate(num_kept)
        for step in steps:
            start = time.monotonic()
            log.write(step=step, epoch=1, split="train", loss=step / 3, lr=0.1)
            log.write(step=step, epoch=1, split="valid", deepest_top1=step / 7)
            longest = max(longest, time.monotonic() - start)
        log.close()
    return longest


@pytest.fixture
def run(tiny_root: Path, tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", tiny_config(tiny_root, "tracker=[tensorboard]", "distill.alpha=0.25"))


@pytest.fixture
def short_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("feed", "weights_and_biases"):
        monkeypatch.setattr(f"fmfsd.trackers.{module}.CLOSE_TIMEOUT_S", SHORT_S)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Run a server that accepts connections and never responds; yield its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def trackers_of(run: RunDir, tiny_root: Path, warnings: list[str], *changes: str) -> Trackers:
    return build_trackers(run, tiny_config(tiny_root, *changes), 1e9, warn=warnings.append)


def test_tensorboard_has_each_record_once_after_a_resume(run: RunDir, tiny_root: Path) -> None:
    """The file of the first part ends in the middle of a record, as after a kill."""
    warnings: list[str] = []
    changes = ("tracker=[tensorboard]", "distill.alpha=0.25", "train.deterministic=true")
    record_some(run, trackers_of(run, tiny_root, warnings, *changes))
    (first,) = run.tensorboard.iterdir()
    first.write_bytes(first.read_bytes()[:-9])
    record_some(run, trackers_of(run, tiny_root, warnings, *changes), num_kept=4, steps=range(3, 9))
    assert read_tensorboard(run) == to_float32(read_metrics(run))
    assert [step for step, _ in read_tensorboard(run)["train/loss"]] == list(range(1, 9))
    values = read_hyperparameters(run)
    assert (values["distill.alpha"], values["train.deterministic"], values["tracker"]) == (
        0.25,
        True,
        "['tensorboard']",
    )
    assert warnings == []


def test_a_running_tensorboard_drops_records_that_are_written_again(run: RunDir, tiny_root: Path) -> None:
    """It has read the old file to its end before the new one is created."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record_some(run, trackers_of(run, tiny_root, [], "tracker=[tensorboard]"))
    running = EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0})
    running.Reload()
    record_some(run, trackers_of(run, tiny_root, [], "tracker=[tensorboard]"), num_kept=4, steps=range(3, 9))
    running.Reload()
    assert [each.step for each in running.Scalars("train/loss")] == list(range(1, 9))


def test_a_tracker_error_is_a_warning_and_the_other_trackers_continue(run: RunDir) -> None:
    warnings: list[str] = []
    broken = TrackerThread("broken", lambda: Broken(3), warnings.append)
    working = TrackerThread("tensorboard", lambda: EventFile(run.tensorboard, {}, 1e9), warnings.append)
    record_some(run, Trackers([broken, working]))
    assert warnings == ["tracker broken failed and gets no more records: no network"]
    assert read_tensorboard(run) == to_float32(read_metrics(run))


def test_a_hanging_tracker_is_abandoned_after_its_timeout(run: RunDir, short_closing: None) -> None:
    warnings: list[str] = []
    release = Event()
    start = time.monotonic()
    feed = TrackerThread("hanging", lambda: Broken(1, release), warnings.append)
    assert record_some(run, Trackers([feed])) < 10
    assert SHORT_S <= time.monotonic() - start < SHORT_S + 20
    assert warnings == ["tracker hanging: not finished 3 s after the run's end, so records may be missing"]
    release.set()


def test_a_failed_run_does_not_wait_for_trackers() -> None:
    release = Event()
    start = time.monotonic()
    trackers = Trackers([TrackerThread("hanging", lambda: Broken(0, release), pytest.fail)])
    trackers.log({})
    trackers.__exit__(RuntimeError, RuntimeError(), None)
    assert time.monotonic() - start < 20
    release.set()


def test_a_full_disk_is_a_warning(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    file = EventFile(run.tensorboard, {}, 1e9)
    file.__enter__()
    file._file.close()
    file._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0)
    monkeypatch.setattr(EventFile, "__enter__", lambda self: self)
    record_some(run, Trackers([TrackerThread("tensorboard", lambda: file, warnings.append)]))
    assert warnings == ["tracker tensorboard failed and gets no more records: [Errno 28] No space left on device"]


@pytest.mark.usefixtures("processes")
def test_a_missing_wandb_package_is_a_warning(
    run: RunDir, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "wandb.py").write_text("raise ImportError('No module named wandb')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}:{os.environ.get('PYTHONPATH', '')}")
    warnings: list[str] = []
    record_some(run, trackers_of(run, tiny_root, warnings, "tracker=[wandb]"))
    assert warnings == ["tracker wandb failed and gets no more records: No module named wandb"]


@pytest.mark.usefixtures("processes")
def test_an_offline_wandb_run_has_the_exact_values(
    run: RunDir, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a resume, with the same run id."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    warnings: list[str] = []
    record_some(run, trackers_of(run, tiny_root, warnings, "tracker=[wandb]"))
    run_id = run.wandb_id.read_text()
    record_some(run, trackers_of(run, tiny_root, warnings, "tracker=[wandb]"), num_kept=4, steps=range(3, 9))
    assert warnings == []
    assert read_wandb(run) == read_metrics(run)
    assert {path.stem for path in run.wandb_id.parent.glob("offline-run-*/*.wandb")} == {f"run-{run_id}"}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_wandb_without_a_server_is_abandoned_after_its_timeout(
    server: str, run: RunDir, tiny_root: Path, silent_server: str, short_closing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixture of `tests/conftest.py` fails if a process is left."""
    monkeypatch.setenv("WANDB_BASE_URL", silent_server if server == "is silent" else "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", NO_KEY)
    warnings: list[str] = []
    start = time.monotonic()
    assert record_some(run, trackers_of(run, tiny_root, warnings, "tracker=[wandb]")) < 1.0
    assert time.monotonic() - start < SHORT_S + 20
    reason = "W&B has not taken all records 2 s after the run's end"
    assert warnings == [f"tracker wandb failed and gets no more records: {reason}"]
