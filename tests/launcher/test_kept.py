"""How a run was launched is kept with it: all but secrets, and not from inside a batch job of its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fmfsd.errors import CheckError
from fmfsd.files import write_json
from fmfsd.rundir import RunDir
from launcher.config import Host, LaunchConfig, SlurmOptions
from launcher.kept import keep, kept
from launcher.resources import Resources
from launcher.site import Site

HERE = Site(Resources(cores=2))
LAUNCH = LaunchConfig(
    nodes=4,
    gpus=8,
    min_nodes=2,
    grace_s=12.5,
    on="ssh",
    hosts=(Host("me@a", slots=8), Host("b")),
    interface="ib0",
    preflight=False,
    extra_env={"MINE": "{id} 'x'\n", "MY_TOKEN": "canary", "PROXY": "http://me:canary@host/"},
    slurm=SlurmOptions(partition="p", cpus_per_gpu=4, extra=(("reservation", "r"),)),
)
SECRETS = {"MY_TOKEN": "canary", "PROXY": "http://me:canary@host/"}


def test_a_launch_is_read_back_as_it_was_and_holds_no_secret(run: RunDir) -> None:
    keep(run, LAUNCH, Site(Resources(cores=2), "ssh", ("me@a", "b")), {})
    assert "canary" not in run.launch.read_text()
    assert kept(run.path, SECRETS) == replace(LAUNCH, run_dir=run.path)


def test_every_secret_that_is_not_set_is_named(run: RunDir) -> None:
    keep(run, LAUNCH, HERE, {})
    with pytest.raises(CheckError) as caught:
        kept(run.path, {})
    assert [problem.where for problem in caught.value.problems] == ["MY_TOKEN", "PROXY"]


@pytest.mark.parametrize(
    ("site", "expected"),
    [(HERE, "local"), (Site(Resources(cores=2), "ssh"), "ssh"), (Site(Resources(cores=2), "srun"), "slurm")],
)
def test_where_it_came_to_run_is_kept(site: Site, expected: str, run: RunDir) -> None:
    """What is meant by auto depends on where it is said."""
    keep(run, LaunchConfig(), site, {})
    assert kept(run.path, {}).on == expected


def test_a_launch_inside_its_own_batch_job_is_not_the_one_to_repeat(run: RunDir) -> None:
    write_json(run.jobs, {"jobs": [{"id": "7", "submitted": 1.0, "command": [], "log": ""}]})
    keep(run, LaunchConfig(slurm=SlurmOptions(partition="p")), HERE, {})
    keep(run, LaunchConfig(), HERE, {"SLURM_JOB_ID": "7"})
    assert kept(run.path, {}).slurm.partition == "p"
    keep(run, LaunchConfig(), HERE, {"SLURM_JOB_ID": "8"})
    assert kept(run.path, {}).slurm.partition is None


@pytest.mark.parametrize("content", [None, "", "[]", '{"nodes": "many"}', '{"extra_env": {"A": 1}}', '{"hosts": [1]}'])
def test_what_is_no_launch_is_not_carried_out(content: str | None, run: RunDir) -> None:
    if content is not None:
        run.launch.write_text(content)
    with pytest.raises(CheckError, match="does not say how this run was launched: launch it as before"):
        kept(run.path, {})


def test_options_that_are_not_known_yet_do_not_matter(run: RunDir, tmp_path: Path) -> None:
    """A run may be launched again by an earlier version, or by a later one."""
    keep(run, LaunchConfig(nodes=3), HERE, {})
    content = json.loads(run.launch.read_text())
    del content["grace_s"]
    write_json(run.launch, {**content, "of_tomorrow": 1})
    assert kept(run.path, {}) == LaunchConfig(nodes=3, on="local", run_dir=run.path)
