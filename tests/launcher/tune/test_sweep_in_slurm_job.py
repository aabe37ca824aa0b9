"""A sweep in a Slurm job: the hosts it uses, the time for saving, and requeueing after a failure."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fmfsd.errors import RunFailedError
from launcher.agent.available_resources import Resources
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.resources import host_probe as survey_module
from launcher.resources.allocation import Allocation
from launcher.resources.host_probe import UnreachableError
from launcher.resources.site import Site
from launcher.run_dir.sweep_dir import SweepDir
from launcher.supervise.requeue import NODE_IS_GONE, TIME_IS_UP, Requeue, reason_to_requeue
from launcher.supervise.restarts import RunResult
from launcher.supervise.stop_requests import StopRequests
from launcher.transport import slurm_commands
from launcher.tune import coordinator as coordination_module
from launcher.tune.coordinator import RAY_SHUTDOWN_S, SweepCoordinator
from launcher.tune.records.sweep_settings import SweepSettings
from launcher.tune.run_sweep import settings_in_batch_job
from launcher.tune.sweep_checks import probe_site
from tests.helpers.sites import LocalhostSite

LOST = ("sh", "-c", "exit 1")


def ended(*, node_is_gone: bool) -> RunResult:
    return cast(RunResult, SimpleNamespace(has_lost_node=node_is_gone))


def requests(*, warned: bool = False, terminated: bool = False) -> StopRequests:
    stop_requests = StopRequests(in_job=True)
    if warned:
        stop_requests.on_warning(0, None)
    if terminated:
        stop_requests.on_terminate(0, None)
    return stop_requests


@pytest.mark.parametrize(
    ("received", "node_is_gone", "expected"),
    [
        (requests(), False, ""),
        (requests(warned=True), False, TIME_IS_UP),
        (requests(warned=True, terminated=True), False, ""),
        (requests(), True, NODE_IS_GONE),
        (requests(terminated=True), True, ""),
    ],
)
def test_a_failed_job_is_requeued_at_its_time_limit_or_without_a_node(
    received: StopRequests, node_is_gone: bool, expected: str
) -> None:
    assert reason_to_requeue(ended(node_is_gone=node_is_gone), received) == expected


@pytest.mark.parametrize("warned", [True, False])
def test_a_sweep_that_fails_at_its_jobs_time_limit_is_requeued(
    warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeued = list[str]()
    monkeypatch.setattr(slurm_commands, "requeue", requeued.append)
    monkeypatch.setattr("launcher.supervise.requeue.time.sleep", lambda _: None)
    monkeypatch.setattr(coordination_module, "render_failure_page", lambda *_: "the search failed")
    sweep, settings, space = SweepDir(tmp_path), SweepSettings(TuneOptions(1), LaunchConfig(), 0), cast(Any, None)
    coordination = SweepCoordinator(sweep, settings, space, LocalhostSite(Resources(1)), {})
    job = Allocation("7", "n1", cores=1, gpus=0, is_batch=True)
    with pytest.raises(RunFailedError, match="the search failed"):
        coordination._fail(ended(node_is_gone=False), Requeue(job, lambda: 1, 0), requests(warned=warned))
    assert requeued == (["7"] if warned else [])


def test_on_hosts_home_user_and_gpus_are_not_passed_on(tmp_path: Path) -> None:
    environment = {"HOME": "/home/me", "USER": "me", "CUDA_VISIBLE_DEVICES": "3", "NCCL_DEBUG": "INFO"}
    settings, space = SweepSettings(TuneOptions(1), LaunchConfig(), 0), cast(Any, None)
    site = Site(Resources(1), "srun", ("n1", "n2"))
    for each, expected in ((site, {"NCCL_DEBUG"}), (Site(Resources(1)), set(environment))):
        for node in SweepCoordinator(SweepDir(tmp_path), settings, space, each, environment).plan().nodes:
            assert environment.keys() & node.env.keys() == expected


@pytest.mark.parametrize(
    ("grace_s", "starter", "expected"), [(30, "torchrun", 90), (400, "direct", 400), (30, "deepspeed", 30)]
)
def test_the_grace_of_trials_is_the_time_between_the_warning_and_the_kill(
    grace_s: float, starter: Any, expected: float
) -> None:
    """180 s in all, of which Slurm may already have used 60 s, and Ray needs 30 s to exit."""
    assert RAY_SHUTDOWN_S == 30
    settings = SweepSettings(TuneOptions(1), LaunchConfig(grace_s=grace_s, starter=starter), 0)
    assert settings_in_batch_job(settings).launch.grace_s == expected


@pytest.mark.usefixtures("processes")
def test_a_sweep_uses_the_hosts_that_answer_and_their_resources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_module, "RETRY_DELAY_S", 0.0)
    site = LocalhostSite(Resources(cores=1, gpus=("0", "1")), "srun", ("n1", "n2"), {"n1": LOST})
    probed = probe_site(site, LaunchConfig(), tmp_path / "runs" / "one", os.environ, str(tmp_path))
    assert (probed.hosts, probed.resources.gpus) == (("n2",), Resources.detect(os.environ).gpus)
    with pytest.raises(UnreachableError, match="n1: no agent could be started there"):
        probe_site(replace(site, hosts=("n1",)), LaunchConfig(), tmp_path / "one", os.environ, str(tmp_path))
