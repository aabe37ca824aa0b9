"""What Tune is given to run, and when, without Tune."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from fmfsd.errors import SearchFailedError
from launcher.agent.resources import Resources
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.driver.ray_searcher import LOST, Feeder, Searched
from launcher.tune.driver.trial_actor import Trial
from launcher.tune.ray.capacity_watchdog import Patience
from launcher.tune.records.history import History
from launcher.tune.records.ledger import facts
from launcher.tune.records.sweep_settings import Begun
from launcher.tune.space.load import Space
from launcher.tune.space.parameters import Parameter
from launcher.tune.sweep.sweep_state import Book
from launcher.tune.sweep.trial_spec import TrialOrder
from tests.helpers.histories import TAPS, TOP1, sweep_of

OPTIONS = TuneOptions(trials=2, search="random")
FULL = "the disk is full"
END = {"state": "finished", "epoch": 1, TOP1: 0.5}


@contextmanager
def feeder(
    made: tuple[SweepDir, Space], trouble: Sequence[str] = (), options: TuneOptions = OPTIONS
) -> Iterator[Feeder]:
    """Of a sweep's start; new trials have what `trouble` says at the time."""
    book = Book(*made, options)
    order = TrialOrder(made[0].path, "0001", (), LaunchConfig(), "/", {})

    def is_stopped() -> bool:
        return made[0].coordination.stop_request.exists()

    source = Searched(book, lambda _trial: order, is_stopped=is_stopped, done=lambda: None)
    yield Feeder(
        source,
        concurrent=2,
        trouble=lambda: "".join(trouble) if book.begins else "",
        is_stopped=is_stopped,
    )
    book.close()


def test_trouble_is_waited_for_as_long_as_a_trial_runs_and_then_said(tmp_path: Path) -> None:
    trouble = list[str]()
    with feeder(sweep_of(tmp_path, TAPS), trouble) as found:
        assert isinstance(found.suggest("a"), dict)
        trouble.append(FULL)
        assert found.suggest("b") is None
        found.on_trial_complete("a", {**END, "state": "failed"})
        with pytest.raises(SearchFailedError, match=FULL):
            found.suggest("b")


def test_what_was_interrupted_goes_on_and_the_end_is_reached_whatever_the_trouble(tmp_path: Path) -> None:
    made, trouble = sweep_of(tmp_path, TAPS), list[str]()
    with feeder(made, trouble) as found:
        assert isinstance(found.suggest("a"), dict)
        assert isinstance(found.suggest("b"), dict)
    trouble.append(FULL)
    with feeder(made, trouble) as found:
        assert [found.suggest("a")["number"], found.suggest("b")["number"]] == [1, 2]  # type: ignore[index]
        found.on_trial_complete("a", END)
        assert found.suggest("c") == Searcher.FINISHED


def test_a_trial_whose_process_is_lost_fails_with_rays_reason(tmp_path: Path) -> None:
    made = sweep_of(tmp_path, TAPS)
    with feeder(made) as found:
        found.suggest("a")
        found.on_trial_restarted("a", "its node died")
        found.on_trial_complete("a", error=True)
        found.on_trial_lost("a", "its node died again")
    (trial,) = History.read(made[0].ledger, OPTIONS).runs
    assert (trial.state, trial.cause) == ("failed", f"{LOST}: its node died again")
    assert [fact["cause"] for fact in facts(made[0].ledger) if fact["fact"] == "restarted"] == ["its node died"]


@pytest.mark.parametrize("how", ["lost", "stopped"])
def test_a_trial_that_does_not_end_well_while_the_sweep_is_to_stop_is_run_again(how: str, tmp_path: Path) -> None:
    made = sweep_of(tmp_path, TAPS)
    with feeder(made) as found:
        found.suggest("a")
        made[0].coordination.stop_request.touch()
        if how == "lost":
            found.on_trial_complete("a", error=True)
            found.on_trial_lost("a", "its node died")
        else:
            found.on_trial_complete("a", {**END, "state": "stopped", "cause": "it exceeded the grace"})
    made[0].coordination.stop_request.unlink()
    with feeder(made) as found:
        assert found.suggest("b")["number"] == 1  # type: ignore[index]


def test_equal_configs_are_run_once_and_two_metrics_give_a_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.tune.sweep.sweep_state.REPEATS", 20)
    made = sweep_of(tmp_path, "model.branches: {subset: {of: [stage1, stage2], min: 1, max: 1}}")
    metrics = {TOP1: 0.5, "cost/train_macs": 1.0}
    options = TuneOptions(trials=8, search="tpe", metrics=tuple(metrics), modes=("max", "min"))
    with feeder(made, options=options) as found:
        while isinstance(order := found.suggest("a"), dict):
            found.on_trial_complete("a", {**END, **metrics})
            metrics = {name: 2 * value for name, value in metrics.items()}
    history = History.read(made[0].ledger, options)
    assert order == Searcher.FINISHED
    assert len(history.trials) > len(history.runs) == 2
    assert {trial.state for trial in history.trials.values()} == {"finished"}
    assert history.front() == history.runs


def test_a_trial_that_lacks_a_secret_where_it_is_says_so(tmp_path: Path) -> None:
    launch = LaunchConfig(extra_env={"NOT_SET_TOKEN": "abc"})
    trial = Trial.__new__(Trial)
    trial.setup({"order": json.dumps(TrialOrder(tmp_path, "0001", (), launch, "/", {}).to_json())})
    told = trial.step()
    trial.cleanup()
    assert (told["state"], told["done"]) == ("failed", True)
    assert "NOT_SET_TOKEN: not set here" in told["cause"]


def test_a_cluster_that_has_lost_too_much_is_waited_for_a_while() -> None:
    begun, now = Begun(TuneOptions(trials=1), LaunchConfig(nodes=2, gpus=1), held_out=0), [0.0]
    left = [Resources(1), Resources(1)]
    patience = Patience(lambda: begun.shape_left_on(left), clock=lambda: now[0])
    patience.look()
    lost = left.pop()
    for now[0] in (60.0, 119.0):
        patience.look()
    left.append(lost)
    now[0] = 130.0
    patience.look()
    left.pop()
    now[0] = 249.0
    patience.look()
    now[0] = 260.0
    with pytest.raises(
        SearchFailedError, match="none came back within 120 s: --nodes, --gpus: a trial requests 2 x 1 cores"
    ):
        patience.look()


def test_a_combination_that_only_its_draw_brings_up_is_a_failed_trial_and_no_end_of_the_search(tmp_path: Path) -> None:
    sweep, space = sweep_of(tmp_path, TAPS)
    alphas = Parameter("distill.alpha", "grid", (2.0, 0.5))
    book = Book(sweep, replace(space, parameters=(alphas,)), TuneOptions(trials=2, search="random"))
    trials = [book.next_trial(), book.next_trial()]
    book.close()
    assert [trial and trial.values for trial in trials] == [{"distill.alpha": 0.5}, None]
    (failed,) = [trial for trial in book.history.runs if trial.state == "failed"]
    assert failed.values == {"distill.alpha": 2.0}
    assert "less than or equal to 1" in failed.cause
