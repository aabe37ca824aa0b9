"""A run's report page: from files only, for runs in any state, and for several runs."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fmfsd.cli import app
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.report.confidence_intervals import wilson_interval
from fmfsd.report.read_run import read_run
from fmfsd.report.sections.confusion import confusion_section
from fmfsd.report.seed_groups import group_by_config, mean_line
from fmfsd.report.sweep_page import render_sweep_page
from fmfsd.report.write import write_report
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from tests.benchmarks.report import make_sweep, write_run_copy
from tests.helpers.processes import command
from tests.helpers.runs import make_run, tiny_config, train_run

pytestmark = pytest.mark.usefixtures("charts_in_process")

SHORT = ("train.max_steps=4", "train.evaluate_every=2 steps", "train.log_every=1 step", "optim.milestones=[]")


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("reported") / "run", tiny_config(tiny_root, *SHORT))
    train_run(SingleWorkerComms(), run.path)
    return run


def copy_run(run: RunDir, folder: Path, seed: int = 0, alpha: float | None = None) -> RunDir:
    """Copy a run and change seed or distillation weight in its config."""
    copy = RunDir(shutil.copytree(run.path, folder))
    config = yaml.safe_load(copy.config.read_text())
    config["seed"] = seed
    config["distill"]["alpha"] = config["distill"]["alpha"] if alpha is None else alpha
    copy.config.write_text(yaml.safe_dump(config))
    return copy


def report(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def sections(page: Path) -> list[str]:
    return re.findall(r'<section id="(\w+)">', page.read_text())


def test_the_page_of_a_run_has_every_part_and_its_numbers(run: RunDir) -> None:
    code, output, _ = report(run.path)
    page = run.path / "report.html"
    assert (code, output.strip()) == (0, str(page))
    head_sections = ["calibration", "confusion", "attention", "agreement"]
    assert sections(page) == ["runs", "made", "test", "curves", *head_sections, "speed"]
    text = page.read_text()
    last = [json.loads(line) for line in run.metrics.read_text().splitlines()][-1]
    assert f"{100 * last['deepest_top1']:.2f} %" in text
    assert len(text) < 3_000_000
    assert report(run.path)[0] == 0, "our own page is overwritten"


def test_every_number_of_the_confusion_matrix_is_in_a_table(run: RunDir) -> None:
    text = confusion_section({"confusion": [[7, 3, 0], [0, 9, 1], [2, 0, 8]]}, ["cat", "dog", "<cow>"])
    assert re.findall(r"<td[^>]*share[^>]*>|<td class=.number. style=[^>]*>(\d*)<", text) == [
        *"73",
        "",
        "",
        *"912",
        "",
        "8",
    ]
    assert "<tr><td>cat</td><td>70.00 %</td><td>10</td><td>dog 3</td></tr>" in re.sub(r' class="number"', "", text)
    many = [[1 if one == other else 2 * (other == one + 1) for other in range(30)] for one in range(30)]
    large = confusion_section({"confusion": many}, [f"c{number}" for number in range(30)])
    assert "<img" in large
    assert "<td>c1 2</td>" in large


def test_early_exits_are_drawn_over_multiply_adds_and_time_with_the_chosen_thresholds_marked(
    run: RunDir, tmp_path: Path
) -> None:
    with_exits = copy_run(run, tmp_path / "exits")
    costs = [{"macs": 2e6, "seconds": 0.002}, {"macs": 1e6, "seconds": 0.001}]
    setting = {"thresholds": [0.75], "top1": 0.5, "leaving": {"branch1": 1.0, "deepest": 0.0}, "cost": costs[1]}
    all_leave = {"branch1": costs[1], "deepest": costs[0]}
    points = [{"threshold": 0.0, "top1": 0.5, "cost": 1e6, "seconds": 0.001}]
    points.append({"threshold": 1.0, "top1": 0.625, "cost": 2e6, "seconds": 0.002})
    content = {"table": {"deepest_alone": costs[0], "if_all_leave": all_leave, "settings": [setting]}, "curve": points}
    write_json(with_exits.early_exits("test"), {**content, "target": "accuracy=-20", "chosen": [0.75]})
    text = write_report([with_exits.path], tmp_path / "left.html").read_text()
    assert "<title>0.75 for accuracy=-20: multiply-adds per image 1 M, top-1 50.00 %</title>" in text
    assert "<title>deepest head alone: ms per image 2, top-1 62.50 %</title>" in text
    assert text.count(">0.75 for accuracy=-20</text>") == 2
    both = write_report(
        [with_exits.path, copy_run(with_exits, tmp_path / "other", alpha=0.5).path], tmp_path / "both.html"
    ).read_text()
    assert "Accuracy and multiply-adds of early exits, test" in both


def test_a_run_in_any_state_has_a_page(run: RunDir, tmp_path: Path) -> None:
    damaged = copy_run(run, tmp_path / "damaged")
    damaged.metrics.write_bytes(damaged.metrics.read_bytes()[:-20])
    damaged.evaluation("test").write_text("{")
    for attention in damaged.attention_files():
        attention.write_text("")
    assert report(damaged.path)[0] == 0
    assert {"calibration", "attention"} & set(sections(damaged.path / "report.html")) == set()
    bare = RunDir(tmp_path / "bare")
    bare.path.mkdir()
    shutil.copy(run.config, bare.config)
    assert report(bare.path)[0] == 0
    assert "not started" in (bare.path / "report.html").read_text()


def test_a_straggler_is_marked(run: RunDir, tmp_path: Path) -> None:
    slow = copy_run(run, tmp_path / "slow")
    for rank, busy_s in enumerate((10.0, 10.5, 30.0)):
        write_json(slow.rank_progress(rank), {"rank": rank, "host": f"n{rank}", "busy_s": busy_s})
    rows = re.findall(r"<tr.*?</tr>", write_report([slow.path], tmp_path / "slow.html").read_text())
    assert [("straggler" in row, "marked" in row) for row in rows if re.search(r"<td>n[0-2]<", row)] == [
        *((False, False), (False, False), (True, True))
    ]


def test_the_page_of_a_failed_run_has_the_cause(run: RunDir, tmp_path: Path) -> None:
    failed = copy_run(run, tmp_path / "failed")
    write_json(failed.outcome, {"state": "failed", "cause": "rank 1 <was> killed", "step": 2})
    write_json(failed.manifest, {"started": 100.0, "launches": [{"command": ["fmfsd-launch", "smoke"]}]})
    write_json(failed.attempt(1), {"attempt": 1, "state": "failed", "cause": "lost", "started": 101.0, "ended": 102.0})
    write_json(failed.attempt(2), {"attempt": 2, "state": "failed", "cause": "lost", "started": 103.0, "ended": None})
    assert report(failed.path)[0] == 0
    text = (failed.path / "report.html").read_text()
    assert "rank 1 &lt;was&gt; killed" in text
    assert "attempt 1 failed" in text
    assert "fmfsd-launch smoke" in text


def test_runs_that_differ_by_their_seed_are_one_line_with_a_band(run: RunDir, tmp_path: Path) -> None:
    others = [copy_run(run, tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2)]
    records = [json.loads(line) for line in others[0].metrics.read_text().splitlines()]
    larger_losses = [{**record, "loss": record["loss"] + 1} for record in records]
    others[0].metrics.write_text("".join(json.dumps(record) + "\n" for record in larger_losses))
    runs = [read_run(each.path) for each in (run, *others, copy_run(run, tmp_path / "other", alpha=0.5))]
    seeds, other = group_by_config(runs)
    assert [len(seeds.runs), len(other.runs)] == [3, 1]
    weight = read_run(run.path).config_values["distill.alpha"]
    assert (seeds.label, other.label) == (f"distill.alpha {weight}", "distill.alpha 0.5")
    line = mean_line("loss", seeds, "train", "loss")
    assert line is not None
    for (_, mean), (low, high) in zip(line.points, line.band, strict=True):
        assert [high - low, mean - low] == pytest.approx([1, 1 / 3])
    page = write_report([each.run.path for each in runs], tmp_path / "all.html")
    assert "distill.alpha 0.5" in page.read_text()
    assert "bands show the minimum and maximum" in page.read_text()


def test_other_folders_and_existing_files_are_errors(run: RunDir, tmp_path: Path) -> None:
    code, output, errors = report(tmp_path)
    assert (code, output) == (3, "")
    assert "not the folder of a run" in errors
    (tmp_path / "notes.html").write_text("mine")
    code, _, errors = report(run.path, "--out", tmp_path / "notes.html")
    assert (code, (tmp_path / "notes.html").read_text()) == (3, "mine")
    assert "was not written by fmfsd report" in errors
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    assert report(run.path, tmp_path / "sweep")[0] == 2


def test_a_sweep_has_its_own_page(tmp_path: Path) -> None:
    write_json(tmp_path / "sweep.json", make_sweep(20))
    (tmp_path / "space.yaml").write_text("parameters: {}\n")
    code, output, _ = report(tmp_path)
    assert (code, output.strip()) == (0, str(tmp_path / "report.html"))
    assert "20 trials: 20 finished" in (tmp_path / "report.html").read_text()


def test_pages_of_100_runs_and_1000_trials_are_small_and_fast_to_write(run: RunDir, tmp_path: Path) -> None:
    folders = [write_run_copy(run, tmp_path / f"run{number:03d}", number) for number in range(100)]
    start = time.process_time()  # CPU time, which does not depend on other processes
    pages = [
        write_report(folders, tmp_path / "runs.html").read_text(),
        render_sweep_page(make_sweep(1000), "parameters: {}\n"),
    ]
    assert time.process_time() - start < 20
    assert max(map(len, pages)) < 3_000_000


@pytest.mark.usefixtures("processes")
def test_a_report_needs_no_torch(run: RunDir) -> None:
    program = "import sys; sys.modules['torch'] = None; from fmfsd.cli import app; app(['report', sys.argv[1]])"
    completed = subprocess.run([sys.executable, "-c", program, str(run.path)], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr


def test_intervals_are_wilson_intervals() -> None:
    """50 of 100: the value of Wilson's formula, method 3 in table I of Newcombe 1998."""
    assert wilson_interval(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson_interval(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


@pytest.mark.usefixtures("processes")
def test_if_v8_cannot_start_a_page_is_complete_except_for_its_charts(run: RunDir, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    limited = ("sh", "-c", 'ulimit -v 16777216; exec "$0" "$@"', command("fmfsd"), "report", run.path, "--out", page)
    completed = subprocess.run(limited, capture_output=True, text=True)
    assert (completed.returncode, completed.stdout) == (0, f"{page}\n"), completed.stderr
    text = page.read_text()
    assert "ended by SIGTRAP: Fatal process out of memory" in text
    assert "The address space is limited to 16384 MiB: run `fmfsd report` where it is unlimited" in text
    assert "<svg" not in text
    assert not list(tmp_path.glob("core*"))
    code, output, _ = report(run.path)
    assert (code, sections(Path(output.strip()))) == (0, sections(page))
