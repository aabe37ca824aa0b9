"""What a launch shows, read from the run's files alone."""

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
from fmfsd.system.atomic_files import write_json, write_whole
from fmfsd.terminal import SteadyStream
from launcher.display import launch_display as display_module
from launcher.display.launch_display import RunDisplay, heads_table
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


def printed(console: Console) -> str:
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
    to = console(terminal=terminal)
    with RunDisplay(to, run, grace_s=30) as display:
        display.update()
        progress(run, step=100)
        display.update()
        record(run, "train", loss=1.0)
        record(run, "test", branch1_top1=0.25, deepest_top1=0.5)
        display.update()
    text = printed(to)
    assert text.count("epoch 1 test: branch1 25.0%, deepest 50.0%") == 1
    assert "train epoch 1/2 step 100/200" in text
    assert "loss 1.500 400 images/s, data wait 1.0%" in text


def test_what_an_earlier_attempt_left_is_not_shown_again(run: RunDir) -> None:
    record(run, "test", deepest_top1=0.5)
    progress(run, step=50)
    write_json(run.attempt(1), {})
    to = console(terminal=False)
    with RunDisplay(to, run, grace_s=30) as display:
        display.update()
    assert printed(to) == ""


def test_a_file_that_a_resumed_run_replaces_is_read_anew(run: RunDir) -> None:
    """Whatever its size by then; records that it kept were shown when they came."""
    for _ in range(3):
        record(run, "test", deepest_top1=0.25)
    to = console(terminal=False)
    with RunDisplay(to, run, grace_s=30) as display:
        kept = run.metrics.read_bytes().splitlines(keepends=True)[0]
        write_whole(run.metrics, kept)
        for accuracy in (0.5, 0.75, 0.875, 1.0):
            record(run, "valid", deepest_top1=accuracy)
            display.update()
    assert [line.split()[-1] for line in printed(to).splitlines()] == ["50.0%", "75.0%", "87.5%", "100.0%"]


def test_a_resumed_run_says_from_where_and_what_was_damaged(run: RunDir) -> None:
    to = console(terminal=False)
    (run.checkpoints / "damaged-of-old").mkdir()
    with RunDisplay(to, run, grace_s=30) as display:
        (run.checkpoints / "damaged-step-00000090-1").mkdir()
        for step in (50, 51):
            progress(run, step=step, went_on_after=50)
            display.update()
    text = printed(to)
    assert text.count("resuming after step 50") == 1
    assert text.count(f"a checkpoint is damaged and was set aside: {run.checkpoints}/damaged-step-00000090-1") == 1
    assert "of-old" not in text


def test_warnings_are_shown_once_each(run: RunDir) -> None:
    to = console(terminal=False)
    with RunDisplay(to, run, grace_s=30) as display:
        for step, takes_s in ((1, 29.0), (2, 31.0), (3, 32.0)):
            progress(run, step=step, warnings=["step 1 not saved: [disk] full"], stop_takes_s=takes_s)
            display.update()
    assert printed(to).count("warning: step 1 not saved: [disk] full") == 1
    assert printed(to).count("warning: a step and a save take more than --grace, 30 s") == 1


def test_nothing_that_is_shown_can_end_a_run(run: RunDir) -> None:
    with RunDisplay(console(terminal=False), run, grace_s=30) as display:
        run.metrics.write_text("no json\n")
        write_json(run.rank_progress(0), {"time": time.time()})
        display.update()


def test_a_stream_without_a_reader_takes_words_all_the_same() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        steady = SteadyStream(stream)
        for _ in range(2):
            steady.write("x" * 100_000)
            steady.flush()
        assert steady.fileno() == writing
        assert not steady.isatty()


def test_half_written_files_are_waited_for(run: RunDir) -> None:
    to = console(terminal=False)
    with RunDisplay(to, run, grace_s=30) as display:
        run.rank_progress(0).write_text('{"state": "tr')
        with run.metrics.open("a") as file:
            file.write('{"step": 100, "epoch": 1, "split": "te')
        display.update()
        with run.metrics.open("a") as file:
            file.write('st", "time": 1.0, "deepest_top1": 0.125}\n')
    assert printed(to) == "epoch 1 test: deepest 12.5%\n"


def test_plain_lines_are_rate_limited(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 1000.0)
    to = console(terminal=False)
    with RunDisplay(to, run, grace_s=30) as display:
        for step in range(5):
            progress(run, step=step)
            display.update()
    assert printed(to) == ""


def test_a_plain_line_has_each_loss_and_the_time_left(run: RunDir) -> None:
    to = console(terminal=False)
    with RunDisplay(to, run, grace_s=30) as display:
        for step in (50, 100, 150):
            progress(run, step=step, loss_label=1.25, loss_feature=0.25)
            display.update()
    assert re.search(r"data wait 1.0%, loss_label 1.250  loss_feature 0.250, 0:00:0\d left\n$", printed(to))


def test_just_after_a_record_its_numbers_are_shown(run: RunDir) -> None:
    to = console(terminal=False)
    with RunDisplay(to, run, grace_s=30) as display:
        write_json(run.rank_progress(0), {"state": "train", "step": 4, "attempt": 1})
        record(run, "train", loss=2.5, loss_label=1.5, images_per_s=20.0, data_wait=0.5)
        display.update()
    assert "loss 2.500 20 images/s, data wait 50.0%, loss_label 1.500" in printed(to)


def test_the_table_has_each_head_and_split() -> None:
    to = console(terminal=False)
    to.print(heads_table({"train": {"loss": 1.0}, "test": {"branch1_top1": 0.3, "deepest_top1": 0.5, "loss": 2.0}}))
    assert "branch1" in printed(to)
    assert "50.00%" in printed(to)
    assert "loss" not in printed(to)


def test_logs_of_other_machines_are_shown_and_of_many_lines_the_first(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display_module, "LOGS_EVERY_S", 0.0)
    to, log = console(terminal=False), run.rank_log(1, 3)
    log.parent.mkdir()
    with RunDisplay(to, run, grace_s=30, logs=LogFollower(run)) as display:
        log.write_text("[red]no markup\n")
        display.update()
        with log.open("a") as file:
            file.write("again\n" * (display_module.LINES_A_LOOK + 7))
    said = printed(to).splitlines()
    assert said[0] == "[node 1 rank 3] [red]no markup"
    assert said[1:-1] == ["[node 1 rank 3] again"] * display_module.LINES_A_LOOK
    assert said[-1] == f"(7 more lines: fmfsd-launch logs {run.path})"
