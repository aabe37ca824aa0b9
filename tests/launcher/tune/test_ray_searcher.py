"""The searcher that feeds trials to Ray Tune, tested without Tune."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from fmfsd.errors import SearchFailedError
from launcher.agent.available_resources import Resources
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.driver.ray_searcher import LOST_TOO_OFTEN, SampledTrials, SweepSearcher
from launcher.tune.driver.trial_actor import TrialActor
from launcher.tune.ray.capacity_watchdog import CapacityWatchdog
from launcher.tune.records.history import History
from launcher.tune.records.ledger import read_facts
from launcher.tune.records.sweep_settings import SweepSettings
from launcher.tune.space.load import Space
from launcher.tune.space.parameters import Parameter
from launcher.tune.sweep.sweep_state import SweepState
from launcher.tune.sweep.trial_spec import TrialSpec
from tests.helpers.histories import TAPS, TOP1, make_sweep

OPTIONS = TuneOptions(trials=2, search="random")
FULL = "the disk is full"
END = {"state": "finished", "epoch": 1, TOP1: 0.5}


@contextmanager
def feeder(
    sweep_and_space: tuple[SweepDir, Space], trouble: Sequence[str] = (), options: TuneOptions = OPTIONS
) -> Iterator[SweepSearcher]:
    """Yield the feeder of a new sweep; `trouble` is the current reason not to start new trials."""
    book = SweepState(*sweep_and_space, options)
    order = TrialSpec(sweep_and_space[0].path, "0001", (), LaunchConfig(), "/", {})

    def is_stopped() -> bool:
        return sweep_and_space[0].coordinator_dir.stop_request.exists()

    source = SampledTrials(book, lambda _trial: order, is_stopped=is_stopped, on_trial_end=lambda: None)
    yield SweepSearcher(
        source,
        concurrent=2,
        find_problem=lambda: "".join(trouble) if book.is_next_trial_new else "",
        is_stopped=is_stopped,
    )
    book.close()


def test_a_full_disk_is_tolerated_while_a_trial_runs_and_then_raised(tmp_path: Path) -> None:
    trouble = list[str]()
    with feeder(make_sweep(tmp_path, TAPS), trouble) as searcher:
        assert isinstance(searcher.suggest("a"), dict)
        trouble.append(FULL)
        assert searcher.suggest("b") is None
        searcher.on_trial_complete("a", {**END, "state": "failed"})
        with pytest.raises(SearchFailedError, match=FULL):
            searcher.suggest("b")


def test_interrupted_trials_are_resumed_in_spite_of_a_full_disk(tmp_path: Path) -> None:
    sweep_and_space, trouble = make_sweep(tmp_path, TAPS), list[str]()
    with feeder(sweep_and_space, trouble) as searcher:
        assert isinstance(searcher.suggest("a"), dict)
        assert isinstance(searcher.suggest("b"), dict)
    trouble.append(FULL)
    with feeder(sweep_and_space, trouble) as searcher:
        assert [searcher.suggest("a")["number"], searcher.suggest("b")["number"]] == [1, 2]  # type: ignore[index]
        searcher.on_trial_complete("a", END)
        assert searcher.suggest("c") == Searcher.FINISHED


def test_a_trial_whose_process_is_lost_fails_with_rays_reason(tmp_path: Path) -> None:
    sweep_and_space = make_sweep(tmp_path, TAPS)
    with feeder(sweep_and_space) as searcher:
        searcher.suggest("a")
        searcher.on_trial_restarted("a", "its node died")
        searcher.on_trial_complete("a", error=True)
        searcher.on_trial_lost("a", "its node died again")
    (trial,) = History.read(sweep_and_space[0].ledger, OPTIONS).runs
    assert (trial.state, trial.cause) == ("failed", f"{LOST_TOO_OFTEN}: its node died again")
    assert [fact["cause"] for fact in read_facts(sweep_and_space[0].ledger) if fact["fact"] == "restarted"] == [
        "its node died"
    ]


@pytest.mark.parametrize("how", ["lost", "stopped"])
def test_a_trial_that_fails_during_a_stop_of_the_sweep_is_run_again(how: str, tmp_path: Path) -> None:
    sweep_and_space = make_sweep(tmp_path, TAPS)
    with feeder(sweep_and_space) as searcher:
        searcher.suggest("a")
        sweep_and_space[0].coordinator_dir.stop_request.touch()
        if how == "lost":
            searcher.on_trial_complete("a", error=True)
            searcher.on_trial_lost("a", "its node died")
        else:
            searcher.on_trial_complete("a", {**END, "state": "stopped", "cause": "it exceeded the grace"})
    sweep_and_space[0].coordinator_dir.stop_request.unlink()
    with feeder(sweep_and_space) as searcher:
        assert searcher.suggest("b")["number"] == 1  # type: ignore[index]


def test_equal_configs_are_run_once_and_two_metrics_give_a_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.tune.sweep.sweep_state.MAX_REPEATED_DRAWS", 20)
    sweep_and_space = make_sweep(tmp_path, "model.branches: {subset: {of: [stage1, stage2], min: 1, max: 1}}")
    metrics = {TOP1: 0.5, "cost/train_macs": 1.0}
    options = TuneOptions(trials=8, search="tpe", metrics=tuple(metrics), modes=("max", "min"))
    with feeder(sweep_and_space, options=options) as searcher:
        while isinstance(suggestion := searcher.suggest("a"), dict):
            searcher.on_trial_complete("a", {**END, **metrics})
            metrics = {name: 2 * value for name, value in metrics.items()}
    history = History.read(sweep_and_space[0].ledger, options)
    assert suggestion == Searcher.FINISHED
    assert len(history.trials) > len(history.runs) == 2
    assert {trial.state for trial in history.trials.values()} == {"finished"}
    assert history.pareto_front() == history.runs


def test_a_trial_without_its_secret_fails_with_that_message(tmp_path: Path) -> None:
    launch = LaunchConfig(extra_env={"NOT_SET_TOKEN": "abc"})
    trial = TrialActor.__new__(TrialActor)
    trial.setup({"order": json.dumps(TrialSpec(tmp_path, "0001", (), launch, "/", {}).to_dict())})
    result = trial.step()
    trial.cleanup()
    assert (result["state"], result["done"]) == ("failed", True)
    assert "NOT_SET_TOKEN: not set here" in result["cause"]


def test_waiting_for_lost_nodes_of_the_cluster_has_a_timeout() -> None:
    settings, now = SweepSettings(TuneOptions(trials=1), LaunchConfig(nodes=2, gpus=1), held_out=0), [0.0]
    left = [Resources(1), Resources(1)]
    patience = CapacityWatchdog(lambda: settings.fit_on_remaining(left), clock=lambda: now[0])
    patience.check()
    lost = left.pop()
    for now[0] in (60.0, 119.0):
        patience.check()
    left.append(lost)
    now[0] = 130.0
    patience.check()
    left.pop()
    now[0] = 249.0
    patience.check()
    now[0] = 260.0
    with pytest.raises(
        SearchFailedError, match="none came back within 120 s: --nodes, --gpus: a trial requests 2 x 1 cores"
    ):
        patience.check()


def test_an_invalid_combination_of_values_is_a_failed_trial_and_does_not_end_the_sweep(tmp_path: Path) -> None:
    sweep, space = make_sweep(tmp_path, TAPS)
    alphas = Parameter("distill.alpha", "grid", (2.0, 0.5))
    book = SweepState(sweep, replace(space, parameters=(alphas,)), TuneOptions(trials=2, search="random"))
    trials = [book.next_trial(), book.next_trial()]
    book.close()
    assert [trial and trial.values for trial in trials] == [{"distill.alpha": 0.5}, None]
    (failed,) = [trial for trial in book.history.runs if trial.state == "failed"]
    assert failed.values == {"distill.alpha": 2.0}
    assert "less than or equal to 1" in failed.cause
