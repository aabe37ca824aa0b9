"""The display of a launch, which reads only the run's files."""

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_atomic, write_json
from fmfsd.terminal import BrokenPipeSafeStream
from launcher.display import launch_display as display_module
from launcher.display.launch_display import RunDisplay, build_heads_table
from launcher.run_dir.log_follower import LogFollower


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(display_module, "READ_EVERY_S", 0.0)
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 0.0)
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def progress(run: RunDir, *, step: int, state: str = "train", attempt: int = 1, **more: Any) -> None:
    content = {
        "state": state,
        "step": step,
        "attempt": attempt,
        "total_steps": 200,
        "steps_per_epoch": 100,
        "loss": 1.5,
    }
    write_json(run.rank_progress(0), {**content, "loss": 1.5, "images_per_s": 400.0, "data_wait": 0.01, **more})


def record(run: RunDir, split: str, **values: float) -> None:
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": 100, "epoch": 1, "split": split, "time": 1.0, **values}) + "\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_and_evaluations_are_shown(terminal: bool, run: RunDir) -> None:
    screen = console(terminal=terminal)
    with RunDisplay(screen, run, grace_s=30) as display:
        display.update()
        progress(run, step=100)
        display.update()
        record(run, "train", loss=1.0)
        record(run, "test", branch1_top1=0.25, deepest_top1=0.5)
        display.update()
    text = output(screen)
    assert text.count("epoch 1 test: branch1 25.0%, deepest 50.0%") == 1
    assert "train epoch 1/2 step 100/200" in text
    assert "loss 1.500 400 images/s, data wait 1.0%" in text


def test_records_of_an_earlier_attempt_are_not_shown_again(run: RunDir) -> None:
    record(run, "test", deepest_top1=0.5)
    progress(run, step=50)
    write_json(run.attempt(1), {})
    screen = console(terminal=False)
    with RunDisplay(screen, run, grace_s=30) as display:
        display.update()
    assert output(screen) == ""


def test_a_metrics_file_that_a_resumed_run_replaces_is_read_from_the_start(run: RunDir) -> None:
    """Independent of its new size. Records that the new file still contains were shown before."""
    for _ in range(3):
        record(run, "test", deepest_top1=0.25)
    screen = console(terminal=False)
    with RunDisplay(screen, run, grace_s=30) as display:
        first_record = run.metrics.read_bytes().splitlines(keepends=True)[0]
        write_atomic(run.metrics, first_record)
        for accuracy in (0.5, 0.75, 0.875, 1.0):
            record(run, "valid", deepest_top1=accuracy)
            display.update()
    assert [line.split()[-1] for line in output(screen).splitlines()] == ["50.0%", "75.0%", "87.5%", "100.0%"]


def test_a_resumed_run_shows_its_step_and_damaged_checkpoints(run: RunDir) -> None:
    screen = console(terminal=False)
    (run.checkpoints / "damaged-of-old").mkdir()
    with RunDisplay(screen, run, grace_s=30) as display:
        (run.checkpoints / "damaged-step-00000090-1").mkdir()
        for step in (50, 51):
            progress(run, step=step, went_on_after=50)
            display.update()
    text = output(screen)
    assert text.count("resuming after step 50") == 1
    assert text.count(f"a checkpoint is damaged and was set aside: {run.checkpoints}/damaged-step-00000090-1") == 1
    assert "of-old" not in text


def test_each_warning_is_shown_once(run: RunDir) -> None:
    screen = console(terminal=False)
    with RunDisplay(screen, run, grace_s=30) as display:
        for step, takes_s in ((1, 29.0), (2, 31.0), (3, 32.0)):
            progress(run, step=step, warnings=["step 1 not saved: [disk] full"], stop_takes_s=takes_s)
            display.update()
    assert output(screen).count("warning: step 1 not saved: [disk] full") == 1
    assert output(screen).count("warning: a step and a save take more than --grace, 30 s") == 1


def test_invalid_progress_files_do_not_end_a_run(run: RunDir) -> None:
    with RunDisplay(console(terminal=False), run, grace_s=30) as display:
        run.metrics.write_text("no json\n")
        write_json(run.rank_progress(0), {"time": time.time()})
        display.update()


def test_writing_to_a_stream_without_a_reader_raises_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        steady = BrokenPipeSafeStream(stream)
        for _ in range(2):
            steady.write("x" * 100_000)
            steady.flush()
        assert steady.fileno() == writing
        assert not steady.isatty()


def test_half_written_files_are_waited_for(run: RunDir) -> None:
    screen = console(terminal=False)
    with RunDisplay(screen, run, grace_s=30) as display:
        run.rank_progress(0).write_text('{"state": "tr')
        with run.metrics.open("a") as file:
            file.write('{"step": 100, "epoch": 1, "split": "te')
        display.update()
        with run.metrics.open("a") as file:
            file.write('st", "time": 1.0, "deepest_top1": 0.125}\n')
    assert output(screen) == "epoch 1 test: deepest 12.5%\n"


def test_plain_lines_are_rate_limited(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 1000.0)
    screen = console(terminal=False)
    with RunDisplay(screen, run, grace_s=30) as display:
        for step in range(5):
            progress(run, step=step)
            display.update()
    assert output(screen) == ""


def test_a_plain_line_has_each_loss_and_the_time_left(run: RunDir) -> None:
    screen = console(terminal=False)
    with RunDisplay(screen, run, grace_s=30) as display:
        for step in (50, 100, 150):
            progress(run, step=step, loss_label=1.25, loss_feature=0.25)
            display.update()
    assert re.search(r"data wait 1.0%, loss_label 1.250  loss_feature 0.250, 0:00:0\d left\n$", output(screen))


def test_right_after_a_record_its_numbers_are_shown(run: RunDir) -> None:
    screen = console(terminal=False)
    with RunDisplay(screen, run, grace_s=30) as display:
        write_json(run.rank_progress(0), {"state": "train", "step": 4, "attempt": 1})
        record(run, "train", loss=2.5, loss_label=1.5, images_per_s=20.0, data_wait=0.5)
        display.update()
    assert "loss 2.500 20 images/s, data wait 50.0%, loss_label 1.500" in output(screen)


def test_the_table_has_each_head_and_split() -> None:
    screen = console(terminal=False)
    screen.print(
        build_heads_table({"train": {"loss": 1.0}, "test": {"branch1_top1": 0.3, "deepest_top1": 0.5, "loss": 2.0}})
    )
    assert "branch1" in output(screen)
    assert "50.00%" in output(screen)
    assert "loss" not in output(screen)


def test_logs_of_other_machines_are_shown_up_to_a_number_of_lines(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "LOGS_EVERY_S", 0.0)
    screen, log = console(terminal=False), run.rank_log(1, 3)
    log.parent.mkdir()
    with RunDisplay(screen, run, grace_s=30, logs=LogFollower(run)) as display:
        log.write_text("[red]no markup\n")
        display.update()
        with log.open("a") as file:
            file.write("again\n" * (display_module.LINES_PER_POLL + 7))
    lines = output(screen).splitlines()
    assert lines[0] == "[node 1 rank 3] [red]no markup"
    assert lines[1:-1] == ["[node 1 rank 3] again"] * display_module.LINES_PER_POLL
    assert lines[-1] == f"(7 more lines: fmfsd-launch logs {run.path})"
