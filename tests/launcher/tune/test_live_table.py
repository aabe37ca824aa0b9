"""What a search shows, read from its folder's files alone."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from launcher.config.launch_config import TuneOptions
from launcher.tune.display import live_table as display_module
from launcher.tune.display.formatting import conclusions
from launcher.tune.display.live_table import SweepDisplay, final_table
from launcher.tune.records.history import History
from tests.helpers.histories import confirm, history_of
from tests.helpers.sweeps import MadeSweep

OPTIONS = TuneOptions(trials=12, concurrent=2, best=2)
FRONT = TuneOptions(trials=12, metrics=("valid/deepest_top1", "cost/train_macs"), modes=("max", "min"))


@pytest.fixture(autouse=True)
def _at_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "READ_EVERY_S", 0.0)
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 0.0)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[MadeSweep]:
    made = MadeSweep(tmp_path / "sweep", OPTIONS)
    yield made
    made.ledger.close()


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_end_of_each_trial_is_a_line(sweep: MadeSweep) -> None:
    """What had ended before is not told again."""
    sweep.asked(0, **{"distill.alpha": 0.25})
    sweep.ended(0, "finished", deepest_top1=0.431)
    with SweepDisplay(to := console(), sweep.dir, OPTIONS, hidden=["seed"]) as shown:
        sweep.asked(1, **{"distill.alpha": 0.3125, "model.branches": [1, 3], "seed": 0})
        sweep.ended(1, "finished", deepest_top1=0.41219)
        sweep.asked(2)
        sweep.ended(2, "failed", cause="rank 0: boom\n\x1b[2J")
        sweep.asked(3)
        sweep.reported(3, 2, deepest_top1=0.1)
        sweep.ended(3, "pruned", deepest_top1=0.1)
        sweep.repeated(4, of=1)
        shown.update()
        sweep.asked(5)
        sweep.ended(5, "finished", deepest_top1=0.5)
    assert printed(to).splitlines() == [
        "trial 0001 finished: valid/deepest_top1 41.22% (best 43.10% by 0000), distill.alpha 0.312, "
        "model.branches [1,3]",
        "trial 0002 failed: rank 0: boom / ",
        "trial 0003 stopped early after epoch 2",
        "trial 0004 has the same config as trial 0001: not run again",
        "5 of 12 ended, about 4 min left",  # 7 x 60 / 2 s
        "trial 0005 finished: valid/deepest_top1 50.00% (the best so far)",
    ]


def test_of_many_ends_at_a_time_the_first_are_told(sweep: MadeSweep) -> None:
    with SweepDisplay(to := console(), sweep.dir, OPTIONS) as shown:
        for number in range(25):
            sweep.asked(number)
            sweep.ended(number, "finished", deepest_top1=0.5)
        shown.update()
    lines = printed(to).splitlines()
    assert lines[-2:] == ["(5 more have ended)", "25 of 25 ended, about 0 s left"]
    assert len(lines) == display_module.LINES_A_LOOK + 2


def test_lines_of_the_whole_are_rare(sweep: MadeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 30.0)
    with SweepDisplay(to := console(), sweep.dir, OPTIONS) as shown:
        for _ in range(50):
            shown.update()
    assert printed(to) == ""


def test_a_line_of_the_whole_is_not_repeated_while_nothing_changes(sweep: MadeSweep) -> None:
    sweep.asked(0)
    with SweepDisplay(to := console(), sweep.dir, OPTIONS) as shown:
        for _ in range(16):
            shown.update()
        sweep.ended(0, "failed", cause="boom")
        for _ in range(16):
            shown.update()
    assert printed(to).splitlines() == ["0 of 12 ended", "trial 0000 failed: boom", "1 of 12 ended, about 6 min left"]


@pytest.mark.parametrize("terminal", [False, True])
def test_winners_that_run_again_are_counted(terminal: bool, tmp_path: Path) -> None:
    options = TuneOptions(trials=1, concurrent=1, seeds=2, best=1)
    made = MadeSweep(tmp_path / "sweep", options)
    made.asked(0)
    made.ended(0, "finished", deepest_top1=0.5)
    with SweepDisplay(to := console(terminal=terminal), made.dir, options) as shown:
        shown.update()
        made.ledger.note("confirmed", config="0000", seed=1, metrics={})
        made.ledger.note("unconfirmed", config="base", seed=1, cause="boom")
        shown.update()
        shown.update()
        text = printed(to)
    made.ledger.close()
    assert "0 of 4 runs with further seeds ended" in text
    assert "2 of 4 runs with further seeds ended" in text
    if not terminal:
        assert text.count(" of 4 runs with further seeds ended") == 2
        assert "1 of 1 ended, 0 of 4 runs with further seeds ended, about 4 min left\n" in text


def test_a_trial_that_ray_has_lost_is_a_warning_with_the_reason(sweep: MadeSweep) -> None:
    sweep.asked(0)
    with SweepDisplay(to := console(), sweep.dir, OPTIONS) as shown:
        sweep.ledger.note("restarted", trial=0, cause="the node ran low on memory")
        sweep.ledger.note("restarted", config="base", seed=7, cause="")
        shown.update()
    assert printed(to).splitlines()[:2] == [
        "warning: trial 0000 was lost and restarts: the node ran low on memory",
        "warning: trial base-seed-7 was lost and restarts: Ray gives no reason",
    ]


def test_nothing_is_said_of_the_time_left_while_it_is_unknown(sweep: MadeSweep) -> None:
    sweep.asked(0)
    with SweepDisplay(to := console(), sweep.dir, OPTIONS) as shown:
        sweep.begun(0, step=50)
        shown.update()
    assert printed(to) == "0 of 12 ended\n"


def test_a_table_shows_counts_the_best_and_what_runs(sweep: MadeSweep) -> None:
    sweep.asked(0, **{"distill.alpha": 0.25})
    sweep.ended(0, "finished", seconds=600, deepest_top1=0.431)
    sweep.asked(1, **{"model.branches": [1, 3]})
    sweep.asked(2)
    with SweepDisplay(to := console(terminal=True), sweep.dir, OPTIONS) as shown:
        sweep.begun(1, step=50)
        sweep.begun(2)
        sweep.reported(1, 1, deepest_top1=0.125)
        shown.update()
        text = printed(to)
    assert "trials: 1 finished, 2 running, 9 waiting; about 52 min left" in text  # (300 + 600 + 9 x 600) / 2 s
    assert "best 0000: valid/deepest_top1 43.10%, distill.alpha 0.25" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert rows == [
        ["0001", "model.branches [1,3]", "2/4", "12.50%", "400"],
        ["0002", "", "starting", "", ""],
    ]


def test_what_an_earlier_launch_of_the_search_began_waits_until_it_is_begun_again(sweep: MadeSweep) -> None:
    sweep.asked(0)
    sweep.begun(0, step=50)
    with SweepDisplay(to := console(terminal=True), sweep.dir, OPTIONS) as shown:
        shown.update()
        assert "trials: 12 waiting" in printed(to)
        sweep.begun(0, attempt=2)
        shown.update()
    assert "trials: 1 running, 11 waiting" in printed(to)
    assert "warning" not in printed(to)


def test_a_failed_attempt_is_a_warning_once(sweep: MadeSweep) -> None:
    sweep.asked(0)
    with SweepDisplay(to := console(), sweep.dir, OPTIONS) as shown:
        sweep.begun(0)
        shown.update()
        sweep.failed_attempt(0, 1, "rank 0 was killed by SIGKILL")
        sweep.begun(0, attempt=2)
        shown.update()
        sweep.begun(0, attempt=3)
        shown.update()
    assert [line for line in printed(to).splitlines() if "warning" in line] == [
        "warning: trial 0000, attempt 1: rank 0 was killed by SIGKILL; attempt 2 continues",
        "warning: trial 0000, attempt 2: its coordinator is gone; attempt 3 continues",
    ]


def test_a_line_that_is_being_written_is_read_once_it_is_whole(sweep: MadeSweep) -> None:
    with SweepDisplay(to := console(), sweep.dir, OPTIONS) as shown:
        with sweep.dir.ledger.open("a") as file:
            file.write('{"fact":"asked","trial":0,"values":{},"dig')
            file.flush()
            shown.update()
            file.write('est":"d","memory":{}}\n')
        sweep.ended(0, "failed", cause="boom")
        shown.update()
    assert "trial 0000 failed: boom" in printed(to)


def test_a_ledger_is_not_read_again(sweep: MadeSweep) -> None:
    """500 trials of 20 reports each, then 100 looks at nothing new: by the bytes that the kernel was asked for."""
    for number in range(500):
        fact = {"fact": "reported", "trial": number, "metrics": {"valid/deepest_top1": 0.5}}
        with sweep.dir.ledger.open("a") as file:
            file.write(json.dumps({"fact": "asked", "trial": number, "values": {}, "digest": "", "memory": {}}) + "\n")
            file.writelines(json.dumps({**fact, "epoch": epoch}) + "\n" for epoch in range(20))
            file.write(json.dumps({**fact, "fact": "ended", "state": "finished", "cause": "", "seconds": 1.0}) + "\n")
    shown = SweepDisplay(console(), sweep.dir, OPTIONS)
    before = _bytes_read()
    for _ in range(100):
        shown.update()
    assert _bytes_read() - before < sweep.dir.ledger.stat().st_size / 4


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_of_several_metrics_the_front_is_told(tmp_path: Path) -> None:
    made = MadeSweep(tmp_path / "sweep", FRONT)
    with SweepDisplay(to := console(), made.dir, FRONT):
        for number, (top1, macs) in enumerate([(0.4, 2e8), (0.3, 1e8), (0.3, 2e8)]):
            made.asked(number)
            made.ended(number, "finished", deepest_top1=top1, train_macs=macs)
    made.ledger.close()
    assert printed(to).splitlines() == [
        "trial 0000 finished: valid/deepest_top1 40.00%, cost/train_macs 2e+08 (one of 2 on the Pareto front)",
        "trial 0001 finished: valid/deepest_top1 30.00%, cost/train_macs 1e+08 (one of 2 on the Pareto front)",
        "trial 0002 finished: valid/deepest_top1 30.00%, cost/train_macs 2e+08",
    ]
    to.print(final_table(History.read(made.dir.ledger, FRONT)))
    assert _cells(to) == [["0000", "40.00%", "2e+08", ""], ["0001", "30.00%", "1e+08", ""]]


def test_at_the_end_the_best_stand_in_a_table(sweep: MadeSweep) -> None:
    for number, top1 in enumerate([0.2, 0.4, 0.3]):
        sweep.asked(number, **{"distill.alpha": number / 4, "seed": 0, **({"ema": [0.9]} if number == 2 else {})})
        sweep.ended(number, "finished", deepest_top1=top1)
    sweep.ledger.note("tested", trial=1, metrics={"test/deepest_top1": 0.39})
    to = console()
    to.print(final_table(History.read(sweep.dir.ledger, OPTIONS), hidden=["seed"]))
    assert _cells(to) == [
        ["0001", "40.00%", "39.00%", "distill.alpha 0.25"],
        ["0002", "30.00%", "", "distill.alpha 0.5, ema [0.9]"],
    ]


def test_at_the_end_the_best_trial_and_its_paired_gain_are_told() -> None:
    history = history_of(({"distill.alpha": 0.25, "seed": 0}, 0.5), ({"distill.alpha": 0.5, "seed": 0}, 0.25))
    confirm(history, "0000", [0.50, 0.52, 0.51])
    confirm(history, "base", [0.40, 0.41, 0.405])
    best, gain = conclusions(history, hidden=["seed"])
    assert best == "best: trial 0000: valid/deepest_top1 50.00%, distill.alpha 0.25"
    assert gain.startswith("trial 0000: +10.50 points of valid/deepest_top1 to base, 95 % interval +")
    assert gain.endswith("the gain is significant")
    assert conclusions(History(OPTIONS)) == []


def _cells(to: Console) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(to).splitlines() if "│" in line]


def test_a_damaged_fact_ends_no_search(sweep: MadeSweep) -> None:
    with SweepDisplay(to := console(), sweep.dir, OPTIONS) as shown:
        with sweep.dir.ledger.open("a") as file:
            file.write('garbage\n{"fact":"ended","trial":7}\n')
        sweep.asked(0)
        sweep.ended(0, "failed", cause="boom")
        shown.update()
    assert "trial 0000 failed: boom" in printed(to)
