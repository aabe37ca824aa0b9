"""The display of a sweep, which reads only the sweep's files."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from launcher.config.launch_config import TuneOptions
from launcher.tune.display import live_table as display_module
from launcher.tune.display.formatting import format_conclusions
from launcher.tune.display.live_table import SweepDisplay, build_final_table
from launcher.tune.records.history import History
from tests.helpers.histories import add_confirmations, make_history
from tests.helpers.sweeps import FakeSweep

OPTIONS = TuneOptions(trials=12, concurrent=2, best=2)
FRONT = TuneOptions(trials=12, metrics=("valid/deepest_top1", "cost/train_macs"), modes=("max", "min"))


@pytest.fixture(autouse=True)
def _no_rate_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "READ_INTERVAL_S", 0.0)
    monkeypatch.setattr(display_module, "PLAIN_INTERVAL_S", 0.0)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[FakeSweep]:
    new_sweep = FakeSweep(tmp_path / "sweep", OPTIONS)
    yield new_sweep
    new_sweep.ledger.close()


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_end_of_each_trial_is_shown_as_a_line(sweep: FakeSweep) -> None:
    """Trials that had ended before are not shown again."""
    sweep.add_trial(0, **{"distill.alpha": 0.25})
    sweep.end_trial(0, "finished", deepest_top1=0.431)
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS, hidden=["seed"]) as display:
        sweep.add_trial(1, **{"distill.alpha": 0.3125, "model.branches": [1, 3], "seed": 0})
        sweep.end_trial(1, "finished", deepest_top1=0.41219)
        sweep.add_trial(2)
        sweep.end_trial(2, "failed", cause="rank 0: boom\n\x1b[2J")
        sweep.add_trial(3)
        sweep.add_report(3, 2, deepest_top1=0.1)
        sweep.end_trial(3, "pruned", deepest_top1=0.1)
        sweep.add_repeat(4, of=1)
        display.update()
        sweep.add_trial(5)
        sweep.end_trial(5, "finished", deepest_top1=0.5)
    assert output(screen).splitlines() == [
        "trial 0001 finished: valid/deepest_top1 41.22% (best 43.10% by 0000), distill.alpha 0.312, "
        "model.branches [1,3]",
        "trial 0002 failed: rank 0: boom / ",
        "trial 0003 stopped early after epoch 2",
        "trial 0004 has the same config as trial 0001: not run again",
        "5 of 12 ended, about 4 min left",  # 7 x 60 / 2 s
        "trial 0005 finished: valid/deepest_top1 50.00% (the best so far)",
    ]


def test_of_many_trials_that_end_at_once_the_first_are_shown(sweep: FakeSweep) -> None:
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS) as display:
        for number in range(25):
            sweep.add_trial(number)
            sweep.end_trial(number, "finished", deepest_top1=0.5)
        display.update()
    lines = output(screen).splitlines()
    assert lines[-2:] == ["(5 more have ended)", "25 of 25 ended, about 0 s left"]
    assert len(lines) == display_module.MAX_LINES_PER_UPDATE + 2


def test_summary_lines_are_rate_limited(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "PLAIN_INTERVAL_S", 30.0)
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS) as display:
        for _ in range(50):
            display.update()
    assert output(screen) == ""


def test_an_unchanged_summary_line_is_not_repeated(sweep: FakeSweep) -> None:
    sweep.add_trial(0)
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS) as display:
        for _ in range(16):
            display.update()
        sweep.end_trial(0, "failed", cause="boom")
        for _ in range(16):
            display.update()
    assert output(screen).splitlines() == [
        "0 of 12 ended",
        "trial 0000 failed: boom",
        "1 of 12 ended, about 6 min left",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_runs_with_further_seeds_are_counted(terminal: bool, tmp_path: Path) -> None:
    options = TuneOptions(trials=1, concurrent=1, seeds=2, best=1)
    new_sweep = FakeSweep(tmp_path / "sweep", options)
    new_sweep.add_trial(0)
    new_sweep.end_trial(0, "finished", deepest_top1=0.5)
    with SweepDisplay(screen := console(terminal=terminal), new_sweep.dir, options) as display:
        display.update()
        new_sweep.ledger.append_fact("confirmed", config="0000", seed=1, metrics={})
        new_sweep.ledger.append_fact("unconfirmed", config="base", seed=1, cause="boom")
        display.update()
        display.update()
        text = output(screen)
    new_sweep.ledger.close()
    assert "0 of 4 runs with further seeds ended" in text
    assert "2 of 4 runs with further seeds ended" in text
    if not terminal:
        assert text.count(" of 4 runs with further seeds ended") == 2
        assert "1 of 1 ended, 0 of 4 runs with further seeds ended, about 4 min left\n" in text


def test_a_trial_lost_by_ray_is_a_warning_with_the_reason(sweep: FakeSweep) -> None:
    sweep.add_trial(0)
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS) as display:
        sweep.ledger.append_fact("restarted", trial=0, cause="the node ran low on memory")
        sweep.ledger.append_fact("restarted", config="base", seed=7, cause="")
        display.update()
    assert output(screen).splitlines()[:2] == [
        "warning: trial 0000 was lost and restarts: the node ran low on memory",
        "warning: trial base-seed-7 was lost and restarts: Ray gives no reason",
    ]


def test_an_unknown_eta_is_not_shown(sweep: FakeSweep) -> None:
    sweep.add_trial(0)
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS) as display:
        sweep.start_attempt(0, step=50)
        display.update()
    assert output(screen) == "0 of 12 ended\n"


def test_the_table_shows_counts_the_best_and_the_running_trials(sweep: FakeSweep) -> None:
    sweep.add_trial(0, **{"distill.alpha": 0.25})
    sweep.end_trial(0, "finished", seconds=600, deepest_top1=0.431)
    sweep.add_trial(1, **{"model.branches": [1, 3]})
    sweep.add_trial(2)
    with SweepDisplay(screen := console(terminal=True), sweep.dir, OPTIONS) as display:
        sweep.start_attempt(1, step=50)
        sweep.start_attempt(2)
        sweep.add_report(1, 1, deepest_top1=0.125)
        display.update()
        text = output(screen)
    assert "trials: 1 finished, 2 running, 9 waiting; about 52 min left" in text  # (300 + 600 + 9 x 600) / 2 s
    assert "best 0000: valid/deepest_top1 43.10%, distill.alpha 0.25" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert rows == [
        ["0001", "model.branches [1,3]", "2/4", "12.50%", "400"],
        ["0002", "", "starting", "", ""],
    ]


def test_trials_started_by_an_earlier_launch_are_waiting_until_started_again(sweep: FakeSweep) -> None:
    sweep.add_trial(0)
    sweep.start_attempt(0, step=50)
    with SweepDisplay(screen := console(terminal=True), sweep.dir, OPTIONS) as display:
        display.update()
        assert "trials: 12 waiting" in output(screen)
        sweep.start_attempt(0, attempt=2)
        display.update()
    assert "trials: 1 running, 11 waiting" in output(screen)
    assert "warning" not in output(screen)


def test_a_failed_attempt_is_a_single_warning(sweep: FakeSweep) -> None:
    sweep.add_trial(0)
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS) as display:
        sweep.start_attempt(0)
        display.update()
        sweep.add_failed_attempt(0, 1, "rank 0 was killed by SIGKILL")
        sweep.start_attempt(0, attempt=2)
        display.update()
        sweep.start_attempt(0, attempt=3)
        display.update()
    assert [line for line in output(screen).splitlines() if "warning" in line] == [
        "warning: trial 0000, attempt 1: rank 0 was killed by SIGKILL; attempt 2 continues",
        "warning: trial 0000, attempt 2: its coordinator is gone; attempt 3 continues",
    ]


def test_a_partially_written_line_is_read_once_complete(sweep: FakeSweep) -> None:
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS) as display:
        with sweep.dir.ledger.open("a") as file:
            file.write('{"fact":"asked","trial":0,"values":{},"dig')
            file.flush()
            display.update()
            file.write('est":"d","memory":{}}\n')
        sweep.end_trial(0, "failed", cause="boom")
        display.update()
    assert "trial 0000 failed: boom" in output(screen)


def test_the_ledger_is_not_read_again(sweep: FakeSweep) -> None:
    """500 trials of 20 reports each, then 100 updates without news; measured by the bytes read from the kernel."""
    for number in range(500):
        fact = {"fact": "reported", "trial": number, "metrics": {"valid/deepest_top1": 0.5}}
        with sweep.dir.ledger.open("a") as file:
            file.write(json.dumps({"fact": "asked", "trial": number, "values": {}, "digest": "", "memory": {}}) + "\n")
            file.writelines(json.dumps({**fact, "epoch": epoch}) + "\n" for epoch in range(20))
            file.write(json.dumps({**fact, "fact": "ended", "state": "finished", "cause": "", "seconds": 1.0}) + "\n")
    display = SweepDisplay(console(), sweep.dir, OPTIONS)
    before = _bytes_read()
    for _ in range(100):
        display.update()
    assert _bytes_read() - before < sweep.dir.ledger.stat().st_size / 4


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_with_several_metrics_the_pareto_front_is_shown(tmp_path: Path) -> None:
    new_sweep = FakeSweep(tmp_path / "sweep", FRONT)
    with SweepDisplay(screen := console(), new_sweep.dir, FRONT):
        for number, (top1, macs) in enumerate([(0.4, 2e8), (0.3, 1e8), (0.3, 2e8)]):
            new_sweep.add_trial(number)
            new_sweep.end_trial(number, "finished", deepest_top1=top1, train_macs=macs)
    new_sweep.ledger.close()
    assert output(screen).splitlines() == [
        "trial 0000 finished: valid/deepest_top1 40.00%, cost/train_macs 2e+08 (one of 2 on the Pareto front)",
        "trial 0001 finished: valid/deepest_top1 30.00%, cost/train_macs 1e+08 (one of 2 on the Pareto front)",
        "trial 0002 finished: valid/deepest_top1 30.00%, cost/train_macs 2e+08",
    ]
    screen.print(build_final_table(History.read(new_sweep.dir.ledger, FRONT)))
    assert _cells(screen) == [["0000", "40.00%", "2e+08", ""], ["0001", "30.00%", "1e+08", ""]]


def test_the_final_table_has_the_best_trials(sweep: FakeSweep) -> None:
    for number, top1 in enumerate([0.2, 0.4, 0.3]):
        sweep.add_trial(number, **{"distill.alpha": number / 4, "seed": 0, **({"ema": [0.9]} if number == 2 else {})})
        sweep.end_trial(number, "finished", deepest_top1=top1)
    sweep.ledger.append_fact("tested", trial=1, metrics={"test/deepest_top1": 0.39})
    screen = console()
    screen.print(build_final_table(History.read(sweep.dir.ledger, OPTIONS), hidden=["seed"]))
    assert _cells(screen) == [
        ["0001", "40.00%", "39.00%", "distill.alpha 0.25"],
        ["0002", "30.00%", "", "distill.alpha 0.5, ema [0.9]"],
    ]


def test_the_conclusions_name_the_best_trial_and_its_paired_gain() -> None:
    history = make_history(({"distill.alpha": 0.25, "seed": 0}, 0.5), ({"distill.alpha": 0.5, "seed": 0}, 0.25))
    add_confirmations(history, "0000", [0.50, 0.52, 0.51])
    add_confirmations(history, "base", [0.40, 0.41, 0.405])
    best, gain = format_conclusions(history, hidden=["seed"])
    assert best == "best: trial 0000: valid/deepest_top1 50.00%, distill.alpha 0.25"
    assert gain.startswith("trial 0000: +10.50 points of valid/deepest_top1 to base, 95 % interval +")
    assert gain.endswith("the gain is significant")
    assert format_conclusions(History(OPTIONS)) == []


def _cells(screen: Console) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output(screen).splitlines() if "│" in line]


def test_a_damaged_fact_does_not_end_a_sweep(sweep: FakeSweep) -> None:
    with SweepDisplay(screen := console(), sweep.dir, OPTIONS) as display:
        with sweep.dir.ledger.open("a") as file:
            file.write('garbage\n{"fact":"ended","trial":7}\n')
        sweep.add_trial(0)
        sweep.end_trial(0, "failed", cause="boom")
        display.update()
    assert "trial 0000 failed: boom" in output(screen)
