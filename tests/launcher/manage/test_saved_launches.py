"""The launch options are stored in the run directory, except secrets."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.config.launch_config import Host, LaunchConfig, SlurmOptions, launch_to_dict
from launcher.manage.resume import load_last_launch
from launcher.resources.resolve_site import resolve_site

LAUNCH = LaunchConfig(
    nodes=4,
    gpus=8,
    min_nodes=2,
    grace_s=12.5,
    on="ssh",
    hosts=(Host("me@a", slots=8), Host("b")),
    interface="ib0",
    preflight=False,
    starter="deepspeed",
    extra_env={"MINE": "{id} 'x'\n", "MY_TOKEN": "canary", "PROXY": "http://me:canary@host/"},
    slurm=SlurmOptions(partition="p", cpus_per_gpu=4, extra=(("reservation", "r"),)),
)
SECRETS = {"MY_TOKEN": "canary", "PROXY": "http://me:canary@host/"}


def save_launch(run: RunDir, launch: LaunchConfig) -> None:
    write_json(run.launch, launch_to_dict(launch))


def test_a_stored_launch_is_read_back_unchanged_and_contains_no_secret(run: RunDir) -> None:
    save_launch(run, LAUNCH)
    assert "canary" not in run.launch.read_text()
    assert load_last_launch(run, SECRETS) == replace(LAUNCH, run_dir=run.path)


def test_every_secret_that_is_not_set_is_named(run: RunDir) -> None:
    save_launch(run, LAUNCH)
    with pytest.raises(CheckError) as caught:
        load_last_launch(run, {})
    assert [problem.where for problem in caught.value.problems] == ["MY_TOKEN", "PROXY"]


@pytest.mark.parametrize(
    ("requested", "expected"), [(LaunchConfig(), "local"), (LaunchConfig(on="slurm", device="cpu"), "slurm")]
)
def test_the_site_that_auto_chose_is_stored(requested: LaunchConfig, expected: str) -> None:
    """The meaning of auto depends on the machine where it is evaluated."""
    assert resolve_site(requested, nodes=None, environment={})[1].on == expected


def test_the_former_starter_name_none_is_read_as_direct(run: RunDir) -> None:
    write_json(run.launch, {**launch_to_dict(LaunchConfig()), "starter": "none"})
    assert load_last_launch(run, {}).starter == "direct"


def test_one_run_of_an_array_is_resumed_without_the_array(run: RunDir) -> None:
    save_launch(run, LaunchConfig(on="slurm", slurm=SlurmOptions(array="0-4", partition="p")))
    assert load_last_launch(run, {}).slurm == SlurmOptions(partition="p")


@pytest.mark.parametrize("content", [None, "", "[]", '{"nodes": "many"}', '{"extra_env": {"A": 1}}', '{"hosts": [1]}'])
def test_an_invalid_launch_file_is_refused(content: str | None, run: RunDir) -> None:
    if content is not None:
        run.launch.write_text(content)
    with pytest.raises(CheckError, match="does not contain the options of this run's launch: launch it as before"):
        load_last_launch(run, {})


def test_unknown_and_missing_options_are_ignored(run: RunDir, tmp_path: Path) -> None:
    """A run may be resumed by an earlier version, or by a later one."""
    save_launch(run, LaunchConfig(nodes=3, on="local"))
    content = json.loads(run.launch.read_text())
    del content["grace_s"]
    write_json(run.launch, {**content, "of_tomorrow": 1})
    assert load_last_launch(run, {}) == LaunchConfig(nodes=3, on="local", run_dir=run.path)
