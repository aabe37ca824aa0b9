"""`fmfsd watch`: the state of a run from its files, including incomplete files."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fmfsd.cli import app
from fmfsd.monitor.find_run import resolve_target
from fmfsd.monitor.live import read_view, watch
from fmfsd.monitor.run_view import read_run_view
from fmfsd.monitor.screen import render_line, render_screen
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.metrics import MetricsLog
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json

STEPS = {"total_steps": 40, "steps_per_epoch": 10}


def make_watched_run(folder: Path, workers: int = 2, **busy_s: float) -> RunDir:
    """Create a run at step 12, by the product's own writers."""
    run = RunDir(folder)
    run.create()
    run.config.write_text("seed: 0\n")
    for rank in range(workers):
        progress = HeartbeatFile(run.rank_progress(rank), rank=rank, attempt=2, busy_s=busy_s.get(f"r{rank}", 10.0))
        progress.update("train", step=12, **STEPS, loss=1.5, loss_label=1.0, images_per_s=250.0, data_wait=0.01)
    log = MetricsLog(run.metrics, time.time())
    log.truncate(0)
    log.write(step=10, epoch=1, split="valid", branch1_top1=0.5, deepest_top1=0.625, loss=1.2)
    log.close()
    return run


def change_progress(run: RunDir, rank: int, **values: Any) -> None:
    content = json.loads(run.rank_progress(rank).read_text())
    write_json(run.rank_progress(rank), {**content, **values})


def render(run: RunDir, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(render_screen(read_view(run.path)))
    return console.export_text()


def test_a_run_is_shown_with_all_its_workers(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run")
    text = render(run)
    assert "running, epoch 2/4, step 12/40, attempt 2" in text
    assert "valid: branch1 50.0%  deepest 62.5%" in text
    assert "loss 1.500  loss_label 1.000" in text
    rows = [row.split() for row in text.splitlines() if re.match(r"\s*[01] ", row)]
    assert [(row[0], row[2], row[3], row[4], row[5]) for row in rows] == [
        (str(rank), "train", "12", "250", "1.0%") for rank in range(2)
    ]


@pytest.mark.parametrize(("slow", "mark"), [(14.9, False), (15.1, True)])
def test_a_worker_that_takes_1_5_times_as_long_is_marked(slow: float, mark: bool, tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run", workers=3, r1=slow)
    assert [worker.is_straggler for worker in read_run_view(run.path).workers] == [False, mark, False]
    assert ("straggler" in render(run)) == mark


def test_a_worker_without_heartbeat_is_marked_and_if_all_are_the_run_is_silent(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run")
    change_progress(run, 1, time=time.time() - 60)
    assert read_run_view(run.path).state == "running"
    assert render_line(read_run_view(run.path)).endswith("rank 1 SILENT")
    change_progress(run, 0, time=time.time() - 60)
    assert read_run_view(run.path).state == "silent"


def test_the_final_state_is_that_of_outcome_json(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run")
    write_json(run.outcome, {"state": "failed", "cause": "rank 1 was killed", "step": 12})
    assert read_run_view(run.path).state == "running", "it was resumed"
    for rank in range(2):
        change_progress(run, rank, time=time.time() - 60)
    assert (read_run_view(run.path).state, read_run_view(run.path).cause) == ("failed", "rank 1 was killed")


def test_losses_of_the_latest_record_are_shown(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run", workers=1)
    content = json.loads(run.rank_progress(0).read_text())
    write_json(run.rank_progress(0), {name: value for name, value in content.items() if not name.startswith("loss")})
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": 12, "epoch": 2, "split": "train", "time": 9.0, "loss": 1.25, "lr": 0.1}) + "\n")
    assert read_run_view(run.path).losses == {"loss": 1.25}


def test_workers_of_an_earlier_attempt_are_not_shown(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run", workers=3)
    change_progress(run, 2, attempt=1)
    assert [worker.rank for worker in read_run_view(run.path).workers] == [0, 1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "train"}', '{"rank": 1}'])
def test_incomplete_files_are_no_error(content: str, tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run")
    run.rank_progress(1).write_text(content)
    run.metrics.write_text('{"step": 1, "spl')
    run.outcome.write_text(content)
    view = read_run_view(run.path)
    assert view.workers[0].rank == 0
    render(run)
    json.dumps(view.to_dict())


def test_of_many_workers_those_with_a_mark_are_shown(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run", workers=64, r63=30.0)
    text = render(run)
    assert "63" in text
    assert "and 40 more workers without a mark" in text
    assert len(text.splitlines()) < 36


def test_a_narrow_terminal_shows_every_column(tmp_path: Path) -> None:
    assert max(map(len, render(make_watched_run(tmp_path / "run"), width=60).splitlines())) <= 60


def test_a_sweep_shows_its_trials(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "space.yaml").write_text("parameters: {}\n")
    for name in ("0001", "0002"):
        make_watched_run(tmp_path / "sweep" / "trials" / name)
    finished = RunDir(tmp_path / "sweep" / "trials" / "0001")
    for rank in range(2):
        change_progress(finished, rank, state="finished")
    write_json(finished.outcome, {"state": "finished", "step": 40})
    view = read_view(tmp_path / "sweep")
    assert render_line(view) == "1 running, 1 finished"
    assert "62.5%" in render(RunDir(tmp_path / "sweep"))
    assert [trial["state"] for trial in view.to_dict()["trials"]] == ["finished", "running"]


def test_watching_a_resumed_sweep_ends_with_it_and_not_with_its_previous_outcome(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "trials" / "0001", workers=1)
    (tmp_path / "space.yaml").write_text("parameters: {}\n")
    write_json(RunDir(tmp_path).owner, {"since": 20.0})
    write_json(RunDir(tmp_path).outcome, {"state": "stopped", "time": 10.0})
    view = read_view(tmp_path)
    assert (view.state, view.is_over) == ("running", False)
    change_progress(run, 0, state="finished")
    write_json(run.outcome, {"state": "finished", "step": 40})
    write_json(RunDir(tmp_path).outcome, {"state": "finished", "time": 30.0})
    result = CliRunner().invoke(app, ["watch", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, "search finished: 1 finished\n")


def test_a_run_is_found_by_its_job_id(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "runs" / "one")
    write_json(run.jobs, {"jobs": [{"id": "4711_3"}, {"id": 4712}]})
    assert (
        resolve_target("4711", tmp_path)
        == resolve_target("4712", tmp_path)
        == resolve_target("runs/one", tmp_path)
        == run.path
    )
    array_run = make_watched_run(tmp_path / "runs" / "array" / "seed-3")
    write_json(array_run.jobs, {"jobs": [{"id": "4713_3"}]})
    assert resolve_target("4713_3", tmp_path) == resolve_target("4713", tmp_path) == array_run.path
    named_by_job = make_watched_run(tmp_path / "runs" / "loss-4714")
    assert resolve_target("4714", tmp_path) == named_by_job.path
    result = CliRunner().invoke(app, ["watch", "99", "--once"])
    assert (result.exit_code, "job 99: no run with this job in" in result.stderr) == (3, True)
    assert CliRunner().invoke(app, ["watch", str(tmp_path), "--once"]).exit_code == 3


def test_once_with_json_prints_one_object(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run", r1=30.0)
    result = CliRunner().invoke(app, ["watch", str(run.path), "--once", "--json"])
    view = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [view[name] for name in ("kind", "state", "step", "attempt")] == ["run", "running", 12, 2]
    assert [worker["straggler"] for worker in view["workers"]] == [False, True]
    assert view["metrics"]["valid"]["deepest_top1"] == 0.625


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    run = make_watched_run(tmp_path / "run")
    for rank in range(2):
        change_progress(run, rank, state="finished")
    write_json(run.outcome, {"state": "finished", "step": 40})
    with (tmp_path / "out").open("w") as file:
        watch(run.path, Console(file=file, width=100), as_json=False, every_s=0.1)
    assert (tmp_path / "out").read_text().startswith("finished, epoch 2/4, step 12/40")
