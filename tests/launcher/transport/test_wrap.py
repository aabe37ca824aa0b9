"""A command in front of the agents: where it stands, what runs inside, and what is asked of the inside."""

import os
from pathlib import Path
from typing import Any, Literal

import pytest

from fmfsd.errors import ConfigError
from fmfsd.run.run_dir import RunDir
from launcher.agent.probe import look
from launcher.agent.resources import Resources
from launcher.check import host_checks
from launcher.config.launch_config import LaunchConfig, SlurmOptions, from_json, to_json
from launcher.plan.plan import plan_run
from launcher.resources import cost_probe as costs_module
from launcher.resources.cost_probe import costs_of
from launcher.resources.host_probe import Survey, survey
from launcher.resources.resolve_site import settle
from launcher.resources.site import WRAPPED, Site
from launcher.slurm.job_options import inner_arguments, slurm_options
from launcher.transport.agent_client import AGENT
from launcher.transport.wrap import parse_wrap, python_inside
from tests.helpers.runs import tiny_config

WRAP = ("apptainer", "exec", "--nv", "my image.sif")
SLURM = SlurmOptions(srun=(("container-image", "my image"), ("container-mount-home", "")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "--wrap: is empty: expected a command"),
        ("env 'X", '--wrap "env \'X": is not a valid command: No closing quotation'),
        ("conda run -n x", "--wrap: conda run buffers the output of agents: add --no-capture-output"),
    ],
)
def test_a_wrapper_that_no_agent_can_run_behind_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_wrap(text)
    assert str(raised.value).startswith(expected)


def test_a_wrapper_is_split_as_a_shell_does() -> None:
    assert parse_wrap("apptainer exec --nv 'my image.sif'") == WRAP
    assert parse_wrap("conda run --no-capture-output -n x")[-1] == "x"
    assert parse_wrap(None) == ()


@pytest.mark.parametrize("reach", ["here", "srun", "ssh"])
def test_the_wrapper_comes_last_before_the_agent(reach: Literal["here", "srun", "ssh"]) -> None:
    words = Site(Resources(1), reach, ("n1",), wrap=WRAP).agent("n1", {})
    text = " ".join(words).replace("'\"'\"'", "'")
    assert "apptainer exec --nv" in text
    assert text.index("my image.sif") < text.index("sh -c") < text.index("launcher.agent")
    assert reach not in ("srun", "ssh") or words[0 if reach == "ssh" else words.index("srun")] == reach


def test_options_of_srun_come_before_the_agent_and_make_a_container() -> None:
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_GPUS_ON_NODE": "1"}
    site, _ = settle(LaunchConfig(on="slurm", slurm=SLURM), nodes=1, environment={})
    words = site.agent("n1", allocation)
    assert words[words.index("--container-image=my image") + 1] == "--container-mount-home"
    assert words[words.index("--container-mount-home") + 1 :][: 2 + len(AGENT) + 1] == python_inside(AGENT)
    assert (site.is_wrapped, Site(Resources(1), "srun", srun_options=("--comment=x",)).is_wrapped) == (True, False)


def test_workers_have_paths_from_inside_and_nodes_of_this_machine_meet_in_the_runs_folder(run: RunDir) -> None:
    environment = {"PATH": "/host", "LD_LIBRARY_PATH": "/host", "PYTHONPATH": "/host", "NCCL_DEBUG": "INFO"}
    site, launch = settle(LaunchConfig(wrap=WRAP, device="cpu"), nodes=2, environment={})
    plan = plan_run(launch, site, run, environment=environment, cwd="/", prepare=("python", "-m", "fmfsd"))
    assert not {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH"} & set(plan.nodes[0].env)
    assert plan.nodes[0].env["NCCL_DEBUG"] == "INFO"
    assert "PATH" in plan.nodes[0].inherits
    assert plan.scratch_parent == str(run.path)
    assert plan.prepare == (*WRAP, *python_inside(("python", "-m", "fmfsd")))
    plain = plan_run(LaunchConfig(device="cpu"), Site(Resources(1)), run, environment=environment, cwd="/")
    assert (plain.nodes[0].env["PATH"], plain.nodes[0].inherits, plain.scratch_parent) == ("/host", (), "")


def test_a_job_is_told_of_the_wrapper_and_a_run_keeps_it(tmp_path: Path) -> None:
    launch = LaunchConfig(wrap=WRAP, slurm=SLURM)
    words = inner_arguments(launch, tmp_path / "config.yaml", tmp_path, workers=1, device="cpu")
    assert words[words.index("--wrap") + 1] == "apptainer exec --nv 'my image.sif'"
    assert [words[place + 1] for place, word in enumerate(words) if word == "--srun-arg"] == [
        "container-image=my image",
        "container-mount-home",
    ]
    assert from_json(to_json(launch), {}) == launch


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("nodelist=n1", "--srun-arg 'nodelist': is the launcher's own"),
        ("out=/x", "--srun-arg 'out': is the launcher's own"),
        ("-w=n1", "--srun-arg '-w': expected the long name of an option of srun"),
        ("container-image=-x", "--srun-arg 'container-image': '-x' is no value"),
    ],
)
def test_options_of_srun_that_are_the_launchers_are_refused(option: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        slurm_options({}, more=(), srun=(option,), cpus_per_gpu=None, wait=False)
    assert str(raised.value).startswith(expected)


def test_what_a_config_costs_is_found_out_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()

    def said(command: tuple[str, ...], **_: object) -> tuple[int, str, str]:
        asked.append(command)
        return 1, "", "no torch"

    monkeypatch.setattr(costs_module, "said_here", said)
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    found = costs_of(tiny_config(tmp_path), ["--", "x"], workers=1, environment=environment, wrap=WRAP)
    assert (asked[0][: len(WRAP)], asked[0][-2:], found.unknown) == (WRAP, ("--", "x"), "`fmfsd probe`: no torch")


def answer(**changed: Any) -> dict[str, Any]:
    return {**look({}, os.environ), "clock_s": 0.0, **changed}


def test_what_a_container_lacks_is_named() -> None:
    asked = {"wrapped": "yes", "parent": "/runs"}
    versions = {"torch": None, "torchvision": "1", "numpy": "2"}
    seen = {WRAPPED: answer(marker=False, versions=versions)}
    found = list(map(str, host_checks.problems(LaunchConfig(), Survey(seen, asked=asked))))
    assert found == [
        "inside --wrap: does not see /runs, the parent of the run directory: mount it into the container",
        "inside --wrap: torch is not installed inside: install fmfsd's dependencies in the image",
    ]


@pytest.mark.usefixtures("processes")
def test_a_machine_has_what_is_seen_inside_the_wrapper(tmp_path: Path) -> None:
    """Its software may differ from the launcher's, its code of fmfsd may not."""
    cores = sorted(os.sched_getaffinity(0))[:1]
    site = Site(Resources.detect(os.environ), wrap=("taskset", "--cpu-list", str(cores[0])))
    found = survey(site, os.environ, run=tmp_path / "run", cwd=str(tmp_path), index=None)
    assert found.told(site).resources.core_numbers == tuple(cores)
    assert list(host_checks.problems(LaunchConfig(), found)) == []
    silent = Site(Resources(1), wrap=("sh", "-c", "echo no such image >&2; exit 1"))
    trouble = survey(silent, os.environ, run=tmp_path / "run", cwd=str(tmp_path), index=None).trouble[WRAPPED]
    assert "no such image (behind --wrap or in srun's container, stdin and stdout must reach the agent)" in trouble
