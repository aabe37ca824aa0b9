"""A trial's run without Ray: equal to a launch of the same config, finished or with a reported failure."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmfsd.config import load_config
from fmfsd.run.run_dir import STOP_NOW, RunDir
from fmfsd.system.atomic_files import read_json, write_atomic
from launcher.resources.config_cost import probe_costs
from launcher.run_dir.run_lock import hold_run_lock
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.space.metrics import list_metric_names
from launcher.tune.sweep.trial_spec import TrialSpec
from tests.helpers.faulty import Moment, inject_fault
from tests.helpers.processes import start_launch, wait_until
from tests.helpers.runs import newest_weights, read_records
from tests.helpers.stub_training import StubTraining, stub_training
from tests.helpers.trials import CPU, EPOCHS, STEPS, make_trial_spec, run_to_end, small_sweep, start_trial


@pytest.fixture
def sweep(tmp_path: Path, tiny_root: Path) -> SweepDir:
    return small_sweep(tmp_path, tiny_root)


@pytest.fixture
def stub(tmp_path: Path) -> StubTraining:
    return stub_training(tmp_path / "stub")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> TrialSpec:
    """Return a finished trial."""
    order = make_trial_spec(
        small_sweep(tmp_path_factory.mktemp("whole"), tiny_root), "optim.weight_decay=0.001", wants_costs=True
    )
    assert run_to_end(order).state == "finished"
    return order


def attempts(run: RunDir) -> list[dict[str, Any]]:
    return [read_json(run.attempt(number)) for number in range(1, run.last_attempt() + 1)]


def test_a_trial_without_torchrun_equals_the_launch_of_its_config_bit_for_bit(whole: TrialSpec, tmp_path: Path) -> None:
    with start_launch(tmp_path, "run", (str(whole.run.config), "--device", "cpu")) as run:
        code, output = run.wait_for_end()
    assert code == 0, output
    assert read_records(run.run) == read_records(whole.run)
    assert newest_weights(run.run) == newest_weights(whole.run)
    plan = json.loads(whole.run.plan.read_text())
    assert [part for part in plan["nodes"][0]["argv"] if "torch" in part] == []


def test_a_finished_trial_returns_its_records_without_starting_anything(whole: TrialSpec) -> None:
    run = run_to_end(whole)
    reported = run.new_records(0)
    assert (run.state, [record["epoch"] for record in reported]) == ("finished", [1, EPOCHS])
    assert run.new_records(1) == reported[1:]
    assert whole.run.last_attempt() == 1
    assert run.elapsed_s() > 1
    measured = read_records(whole.run)[-1]
    assert measured["split"] == "valid"
    assert reported[-1]["valid/deepest_top1"] == measured["deepest_top1"]


def test_the_metrics_for_a_search_are_those_that_a_trial_reports(whole: TrialSpec) -> None:
    config = load_config(str(whole.sweep_dir.config))
    probe = probe_costs(config, [str(whole.sweep_dir.config)], workers=1, environment=whole.environment).probe
    assert probe is not None
    assert {"epoch", *list_metric_names(probe)} == run_to_end(whole).last_record().keys()


def test_a_trial_spec_survives_a_json_round_trip(whole: TrialSpec) -> None:
    assert TrialSpec.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def holds_and_is_slow(moment: Moment) -> None:
    if moment.attempt_rank_step == (1, 0, 17):
        moment.hold()
    if moment.attempt == 1 and moment.step >= 17:
        time.sleep(0.2)


@pytest.mark.fault("F1")
def test_the_kill_of_a_single_worker_is_reported_and_a_new_attempt_resumes(
    whole: TrialSpec, sweep: SweepDir, tmp_path: Path
) -> None:
    fault = inject_fault(tmp_path / "fault", holds_and_is_slow)
    order = make_trial_spec(sweep, *whole.overrides, env=fault.env)
    with start_trial(order) as run:
        wait_until(fault.hold_marker(attempt=1, rank=0).exists, "the worker at its step")
        early = wait_until(lambda: run.new_records(0), "the first epoch")
        psutil.Process(read_json(order.run.rank_progress(0))["pid"]).kill()
        run.wait(120)
    first, last = attempts(order.run)
    assert re.fullmatch(
        r"rank 0 \(pid \d+ on \S+\) after step 1[67]: killed by SIGKILL: by a user, or .*", first["cause"]
    )
    assert (last["state"], run.state, run.cause) == ("finished", "finished", "")
    assert run.new_records(0)[: len(early)] == early
    assert read_records(order.run) == read_records(whole.run)
    assert newest_weights(order.run) == newest_weights(whole.run)


def test_a_sweeps_stop_request_stops_its_trial_with_a_checkpoint(sweep: SweepDir, stub: StubTraining) -> None:
    order, held = make_trial_spec(sweep, env=stub.env), stub.hold("0000", attempt=1, step=17)
    with start_trial(order) as run:
        wait_until(held.exists, "the worker at its step")
        write_atomic(sweep.coordinator_dir.stop_request, "")
        run.wait(60)
    assert (run.state, read_json(order.run.outcome)["state"]) == ("stopped", "stopped")
    assert order.run.newest_step() == 18
    sweep.coordinator_dir.stop_request.unlink()
    assert run_to_end(order).state == "finished"
    assert [record["step"] for record in read_records(order.run)] == [14, STEPS]


def test_a_trial_that_exceeds_the_grace_is_stopped_and_can_run_again(sweep: SweepDir, stub: StubTraining) -> None:
    launch = replace(CPU, grace_s=0.1)
    order, held = make_trial_spec(sweep, env=stub.env, launch=launch), stub.hold("0000", attempt=1, step=17)
    with start_trial(order) as run:
        wait_until(held.exists, "the worker at its step")
        psutil.Process(read_json(order.run.rank_progress(0))["pid"]).suspend()
        write_atomic(sweep.coordinator_dir.stop_request, "")
        run.wait(60)
    assert run.state == "stopped"
    assert "did not stop within the 0.1 s of --grace" in run.cause
    sweep.coordinator_dir.stop_request.unlink()
    assert run_to_end(order).state == "finished"
    assert [record["step"] for record in read_records(order.run)] == [14, STEPS]


@pytest.mark.parametrize("by", ["the sweep", "its owner"])
def test_a_trial_can_be_ended_immediately(by: str, sweep: SweepDir, stub: StubTraining) -> None:
    order, held = make_trial_spec(sweep, env=stub.env), stub.hold("0000", attempt=1, step=17)
    with start_trial(order) as run:
        wait_until(held.exists, "the worker at its step")
        start = time.monotonic()
        if by == "the sweep":
            write_atomic(sweep.coordinator_dir.stop_request, STOP_NOW)
            run.wait(60)
        else:
            run.stop_now()
        took_s = time.monotonic() - start
    assert (run.state, read_json(order.run.outcome)["state"]) == ("stopped", "interrupted")
    assert took_s < 30


def test_a_trial_waits_for_the_lock_of_its_run(sweep: SweepDir) -> None:
    order = make_trial_spec(sweep)
    with hold_run_lock(order.run), start_trial(order) as run:
        run.wait(0.1)
        assert run.state == "running"
        run.stop_now()
    assert (run.state, order.run.last_attempt()) == ("stopped", 0)


def test_the_hang_of_a_single_worker_is_reported_with_its_stack(sweep: SweepDir, stub: StubTraining) -> None:
    stub.hold("0000", attempt=1, step=1)
    launch = replace(CPU, hang_timeout_s=2, max_restarts=0)
    order = make_trial_spec(sweep, launch=launch, env=stub.env)
    run = run_to_end(order)
    assert run.state == "failed"
    assert "waits for no other worker" in run.cause
    assert re.search(
        r"stack of rank 0, innermost call first:\n.* in _wait_while_held\n", order.run.coordinator_log.read_text()
    )
    assert read_json(order.run.outcome)["no_other_attempt"].startswith("0 restarts")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.alpha=2"], lambda order: "--set distill.alpha=2: distill.alpha: expected less than or equal to 1"),
        (["model.backbone=timm/no_such_model"], lambda order: "no_such_model"),
    ],
)
def test_a_failed_trial_reports_its_own_error_message(
    overrides: list[str], message: Callable[[TrialSpec], str], sweep: SweepDir
) -> None:
    order = make_trial_spec(sweep, *overrides)
    run = run_to_end(order)
    assert run.state == "failed"
    assert message(order) in run.cause


def test_a_trial_whose_workers_do_not_divide_the_shards_is_rejected(sweep: SweepDir) -> None:
    run = run_to_end(make_trial_spec(sweep, launch=replace(CPU, nodes=3, gpus=1)))
    assert (run.state, run.cause.split(":")[0]) == ("failed", "--nodes, --gpus")
