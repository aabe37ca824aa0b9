"""The settings that a sweep stores when it starts, and reads when it is resumed."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fmfsd.errors import CheckError, ConfigError
from fmfsd.system.atomic_files import write_json
from launcher.agent.available_resources import Resources
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.resources.allocation import Allocation
from launcher.run_dir.run_lock import Owner
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.records.history import History
from launcher.tune.records.sweep_settings import SweepSettings
from launcher.tune.records.trial_resources import TrialResources
from launcher.tune.run_sweep import (
    PreparedSweep,
    SweepRequest,
    _with_sweep_dir_of_job,
    _write_sweep_files,
    run_sweep,
)
from launcher.tune.sweep_checks import require_valid_search
from tests.helpers.histories import TAPS, make_sweep


def test_no_file_of_a_sweep_holds_a_secret(tmp_path: Path) -> None:
    sweep, space = make_sweep(tmp_path, TAPS)
    settings = SweepSettings(TuneOptions(trials=3), LaunchConfig(gpus=1, extra_env={"MY_TOKEN": "abc123"}), held_out=0)
    ready = PreparedSweep(sweep, settings, space, (), TrialResources("cpu", 1, 0, 1), (), {})
    _write_sweep_files(ready, ["fmfsd-tune", "--env", "MY_TOKEN=abc123", "--env=OTHER_KEY=abc123"])
    assert "MY_TOKEN" in sweep.ledger.read_text()
    assert not [path for path in sweep.path.rglob("*") if path.is_file() and "abc123" in path.read_text()]


def test_after_a_loss_of_nodes_fewer_concurrent_trials_are_allowed() -> None:
    settings = SweepSettings(TuneOptions(trials=9, concurrent=4), LaunchConfig(gpus=1, device="cpu"), held_out=0)
    left = [Resources(2), Resources(1)]
    assert settings.fit_on_remaining(left).concurrent == 3
    assert settings.fit_on_remaining([*left, Resources(8)]).concurrent == 4
    with pytest.raises(CheckError, match="--concurrent"):
        settings.fit_on(left)


@pytest.mark.parametrize(
    "fact",
    [
        {"fact": "reported", "trial": 7, "epoch": 1, "metrics": {}},
        {"fact": "ended", "trial": 7},
        {"fact": "freed", "trial": 7},
        {"fact": "asked", "trial": 7},
    ],
)
def test_facts_about_unknown_trials_are_refused_with_their_line(fact: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(f'{{"fact":"begun"}}\n{json.dumps(fact)}\n')
    with pytest.raises(CheckError, match=r"ledger\.jsonl:2: does not fit"):
        History.read(path, TuneOptions(trials=1))


@pytest.mark.parametrize("address", ["local", "ray://head:10001", "head", "head:port"])
def test_an_invalid_address_of_a_ray_cluster_is_refused(address: str, tmp_path: Path) -> None:
    _, space = make_sweep(tmp_path, TAPS)
    options = TuneOptions(trials=3, search="random", ray_address=address)
    with pytest.raises(ConfigError, match="expected auto or HOST:PORT"):
        require_valid_search(space, options, SweepDir(tmp_path / "new"))


def test_a_sweep_that_another_launch_runs_is_not_resumed_even_in_a_dry_run(tmp_path: Path) -> None:
    sweep, space = make_sweep(tmp_path, TAPS)
    settings = SweepSettings(TuneOptions(trials=3, search="random"), LaunchConfig(gpus=1, device="cpu"), held_out=0)
    _write_sweep_files(PreparedSweep(sweep, settings, space, (), TrialResources("cpu", 1, 0, 1), (), {}), [])
    write_json(sweep.coordinator_dir.owner, asdict(Owner.current()))
    for stop_after in ("plan", "run"):
        request = SweepRequest(None, None, (), {}, LaunchConfig(), resume=sweep.path, stop_after=stop_after)
        with pytest.raises(CheckError, match=f"{os.getpid()}"):
            run_sweep(request, environment=os.environ, cwd=str(tmp_path), argv=[])


def test_a_failed_run_with_another_seed_is_listed_until_it_succeeds() -> None:
    history, identity = History(TuneOptions(trials=1)), {"config": "base", "seed": 7}
    history.add({"fact": "unconfirmed", **identity, "cause": "the disk is full"})
    assert history.failed_reruns == {"base-seed-7": "the disk is full"}
    history.add({"fact": "confirmed", **identity, "metrics": {}})
    assert not history.failed_reruns


def test_a_requeued_batch_job_resumes_its_own_sweep(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tmp_path, TAPS)
    sweep.ledger.touch()
    request = SweepRequest(
        space="loss", config=None, overrides=(), cli_options={}, launch=LaunchConfig(), sweep_dir=sweep.path
    )
    first = Allocation("5", "n1", 2, 0, is_batch=True)
    assert _with_sweep_dir_of_job(request, str(tmp_path), first) == request
    assert _with_sweep_dir_of_job(request, str(tmp_path), replace(first, restarts=1)).resume == sweep.path
