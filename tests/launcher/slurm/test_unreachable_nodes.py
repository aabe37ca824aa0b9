"""Nodes of a Slurm job that do not answer the checks: retries, starting without them, requeueing."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from launcher import launch_request
from launcher.agent.available_resources import Resources
from launcher.config.launch_config import LaunchConfig
from launcher.launch_request import LaunchRequest, check_request
from launcher.resources import host_probe as survey_module
from launcher.resources.allocation import Allocation
from launcher.resources.config_cost import Costs
from launcher.resources.elasticity import slots_to_use, usable_nodes
from launcher.resources.host_probe import UnreachableError
from launcher.resources.resolve_site import resolve_site
from launcher.supervise.unreachable_nodes import MOST_REQUEUES, handle_unreachable
from launcher.transport import slurm_commands
from launcher.transport.agent_client import AGENT_COMMAND
from launcher.transport.slurm_job_state import JobState
from tests.helpers.launches import overrides
from tests.helpers.runs import TINY
from tests.helpers.sites import LocalhostSite

LOST = ("sh", "-c", "echo credential revoked >&2; exit 1")


@pytest.mark.parametrize(("left", "workers", "shards", "expected"), [(4, 2, 16, 4), (3, 2, 16, 2), (3, 4, 6, 0)])
def test_the_largest_number_of_nodes_that_divides_the_shards_is_used(
    left: int, workers: int, shards: int, expected: int
) -> None:
    assert usable_nodes(left, workers, shards) == expected


@pytest.mark.parametrize(
    ("min_nodes", "lost", "expected"),
    [(None, [1], (0, 1, 2, 3)), (2, [0], (1, 2)), (3, [0], (0, 1, 2, 3)), (1, [], (0, 1, 2, 3))],
)
def test_only_an_elastic_launch_starts_without_lost_nodes(
    min_nodes: int | None, lost: list[int], expected: tuple[int, ...]
) -> None:
    assert slots_to_use(lost, LaunchConfig(nodes=4, min_nodes=min_nodes), workers=1, shards=16) == expected


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "RETRY_DELAY_S", 0.0)


@pytest.fixture
def without_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_request, "probe_costs", lambda *_, **__: Costs())


def check_in_allocation(site: LocalhostSite, root: Path, tmp_path: Path, min_nodes: int | None) -> Any:
    launch = LaunchConfig(nodes=2, min_nodes=min_nodes, device="cpu", gpus=1, on="slurm")
    changes = overrides(*TINY, f"data.root={root}")[1::2]
    request = LaunchRequest("cifar100-resnet18", changes, launch, site, "run", as_json=False)
    return check_request(request, RunDir(tmp_path / "run"), os.environ, str(tmp_path))


@pytest.mark.usefixtures("processes", "quick_retries", "without_costs")
def test_a_node_whose_first_job_steps_fail_is_probed_again(tiny_root: Path, tmp_path: Path) -> None:
    script = f'echo >> {tmp_path}/tries; [ "$(wc -l < {tmp_path}/tries)" -gt 2 ] || exit 1; exec "$@"'
    site = LocalhostSite(Resources(1), "srun", ("n1", "n2"), {"n1": ("sh", "-c", script, "sh", *AGENT_COMMAND)})
    result = check_in_allocation(site, tiny_root, tmp_path, None)
    assert result.slots == (0, 1)


@pytest.mark.usefixtures("processes", "quick_retries", "without_costs")
def test_an_elastic_job_starts_without_a_node_that_does_not_answer(tiny_root: Path, tmp_path: Path) -> None:
    site = LocalhostSite(Resources(1), "srun", ("n1", "n2"), {"n1": LOST})
    result = check_in_allocation(site, tiny_root, tmp_path, 1)
    assert result.slots == (1,)
    assert result.warnings[0].startswith("1 of 2 nodes are used (--elastic), as some do not answer: n1: ")
    with pytest.raises(UnreachableError, match="n1: no agent could be started there: credential revoked"):
        check_in_allocation(site, tiny_root, tmp_path, None)


def test_an_elastic_launch_accepts_an_allocation_with_fewer_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_commands, "_run_checked", lambda *_: "n1")
    settled = partial(resolve_site, nodes=2, environment={"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"})
    site, launch = settled(LaunchConfig(min_nodes=1))
    assert (site.hosts, launch.nodes) == (("n1",), 1)


@pytest.mark.usefixtures("processes")
def test_an_allocation_without_slurm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CheckError, match="SLURM_JOB_ID=7: scontrol: not found.*to use this machine: --on local"):
        resolve_site(LaunchConfig(), nodes=None, environment={"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"})


def in_job(restarts: int, *, is_batch: bool = True) -> Allocation:
    return Allocation("7", "n1", cores=1, gpus=0, restarts=restarts, is_batch=is_batch)


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the ids of the requeued jobs; each requeue kills the caller, as Slurm does."""
    job_ids = list[str]()

    def killed(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_commands, "query_job_state", lambda _: JobState("7", "RUNNING"))
    monkeypatch.setattr(slurm_commands, "requeue", job_ids.append)
    monkeypatch.setattr("launcher.supervise.requeue.time.sleep", killed)
    return job_ids


ERROR = UnreachableError("n2: no agent could be started there")


@pytest.mark.parametrize("passed", [None, 5])
def test_a_batch_job_is_requeued_a_limited_number_of_times(
    passed: int | None, run: RunDir, requeued: list[str]
) -> None:
    """The count starts at the restart that last passed its checks."""
    if passed is not None:
        launches = [{}, {"job": None}, {"job": {"id": "6", "restart": 9}}, {"job": {"id": "7", "restart": passed}}]
        run.manifest.write_text(json.dumps({"launches": launches}))
    first = 0 if passed is None else passed + 1
    for restarts in range(first, first + MOST_REQUEUES):
        with pytest.raises(KeyboardInterrupt):
            handle_unreachable(ERROR, in_job(restarts), run, lambda text: None)
    handle_unreachable(ERROR, in_job(first + MOST_REQUEUES), run, lambda text: None)
    assert requeued == ["7"] * MOST_REQUEUES


def test_an_interactive_allocation_is_not_requeued(run: RunDir, requeued: list[str]) -> None:
    handle_unreachable(ERROR, in_job(0, is_batch=False), run, lambda text: None)
    assert requeued == []


@pytest.mark.fault("F50")
@pytest.mark.parametrize(
    ("state", "expected"),
    [(None, "Slurm does not know this job"), (JobState("7", "COMPLETED"), r"that job has ended \(COMPLETED\)")],
)
def test_a_variable_of_a_job_that_has_ended_is_named(
    state: JobState | None, expected: str, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_commands, "query_job_state", lambda _: state)
    with pytest.raises(CheckError, match=f"SLURM_JOB_ID=7: {expected}: to train on this machine: --on local"):
        handle_unreachable(ERROR, in_job(0), run, lambda text: None)
