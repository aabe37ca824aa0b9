"""--wrap: the position of the wrapper in commands, the agents inside it, and the checks of the container."""

import os
from pathlib import Path
from typing import Any, Literal

import pytest

from fmfsd.errors import ConfigError
from fmfsd.run.run_dir import RunDir
from launcher.agent.available_resources import Resources
from launcher.agent.describe_machine import probe_machine
from launcher.check import host_checks
from launcher.config.launch_config import LaunchConfig, SlurmOptions, launch_from_dict, launch_to_dict
from launcher.plan.launch_plan import plan_run
from launcher.resources import config_cost as costs_module
from launcher.resources.config_cost import probe_costs
from launcher.resources.host_probe import HostProbe, probe_hosts
from launcher.resources.resolve_site import resolve_site
from launcher.resources.site import WRAPPED_HOST, Site
from launcher.slurm.job_options import build_launch_arguments, parse_slurm_options
from launcher.transport.agent_client import AGENT_COMMAND
from launcher.transport.wrap_command import parse_wrap, with_python_fallback
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
def test_a_wrapper_that_can_not_run_an_agent_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_wrap(text)
    assert str(raised.value).startswith(expected)


def test_a_wrapper_is_split_as_a_shell_does() -> None:
    assert parse_wrap("apptainer exec --nv 'my image.sif'") == WRAP
    assert parse_wrap("conda run --no-capture-output -n x")[-1] == "x"
    assert parse_wrap(None) == ()


@pytest.mark.parametrize("reach", ["here", "srun", "ssh"])
def test_the_wrapper_stands_directly_before_the_agent(reach: Literal["here", "srun", "ssh"]) -> None:
    arguments = Site(Resources(1), reach, ("n1",), wrap=WRAP).agent_command("n1", {})
    text = " ".join(arguments).replace("'\"'\"'", "'")
    assert "apptainer exec --nv" in text
    assert text.index("my image.sif") < text.index("sh -c") < text.index("launcher.agent")
    assert reach not in ("srun", "ssh") or arguments[0 if reach == "ssh" else arguments.index("srun")] == reach


def test_srun_options_precede_the_agent_and_count_as_a_container() -> None:
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_GPUS_ON_NODE": "1"}
    site, _ = resolve_site(LaunchConfig(on="slurm", slurm=SLURM), nodes=1, environment={})
    arguments = site.agent_command("n1", allocation)
    assert arguments[arguments.index("--container-image=my image") + 1] == "--container-mount-home"
    assert arguments[arguments.index("--container-mount-home") + 1 :][
        : 2 + len(AGENT_COMMAND) + 1
    ] == with_python_fallback(AGENT_COMMAND)
    assert (site.is_wrapped, Site(Resources(1), "srun", srun_options=("--comment=x",)).is_wrapped) == (True, False)


def test_workers_use_the_containers_paths_and_local_nodes_use_the_run_directory_for_rendezvous(run: RunDir) -> None:
    environment = {"PATH": "/host", "LD_LIBRARY_PATH": "/host", "PYTHONPATH": "/host", "NCCL_DEBUG": "INFO"}
    site, launch = resolve_site(LaunchConfig(wrap=WRAP, device="cpu"), nodes=2, environment={})
    plan = plan_run(launch, site, run, environment=environment, cwd="/", prepare=("python", "-m", "fmfsd"))
    assert not {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH"} & set(plan.nodes[0].env)
    assert plan.nodes[0].env["NCCL_DEBUG"] == "INFO"
    assert "PATH" in plan.nodes[0].inherits
    assert plan.scratch_parent == str(run.path)
    assert plan.prepare == (*WRAP, *with_python_fallback(("python", "-m", "fmfsd")))
    plain = plan_run(LaunchConfig(device="cpu"), Site(Resources(1)), run, environment=environment, cwd="/")
    assert (plain.nodes[0].env["PATH"], plain.nodes[0].inherits, plain.scratch_parent) == ("/host", (), "")


def test_the_wrapper_is_passed_to_the_job_and_stored_with_the_run(tmp_path: Path) -> None:
    launch = LaunchConfig(wrap=WRAP, slurm=SLURM)
    arguments = build_launch_arguments(launch, tmp_path / "config.yaml", tmp_path, workers=1, device="cpu")
    assert arguments[arguments.index("--wrap") + 1] == "apptainer exec --nv 'my image.sif'"
    assert [arguments[index + 1] for index, argument in enumerate(arguments) if argument == "--srun-arg"] == [
        "container-image=my image",
        "container-mount-home",
    ]
    assert launch_from_dict(launch_to_dict(launch), {}) == launch


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("nodelist=n1", "--srun-arg 'nodelist': is set by the launcher itself"),
        ("out=/x", "--srun-arg 'out': is set by the launcher itself"),
        ("-w=n1", "--srun-arg '-w': expected the long name of an option of srun"),
        ("container-image=-x", "--srun-arg 'container-image': '-x' is not a value"),
    ],
)
def test_srun_options_that_the_launcher_sets_are_refused(option: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_slurm_options({}, more=(), srun=(option,), cpus_per_gpu=None, wait=False)
    assert str(raised.value).startswith(expected)


def test_the_cost_probe_runs_inside_the_wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = list[Any]()

    def fake_probe(command: tuple[str, ...], **_: object) -> tuple[int, str, str]:
        commands.append(command)
        return 1, "", "no torch"

    monkeypatch.setattr(costs_module, "run_captured", fake_probe)
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    costs = probe_costs(tiny_config(tmp_path), ["--", "x"], workers=1, environment=environment, wrap=WRAP)
    assert (commands[0][: len(WRAP)], commands[0][-2:], costs.probe_error) == (
        WRAP,
        ("--", "x"),
        "`fmfsd probe`: no torch",
    )


def probe_result(**changed: Any) -> dict[str, Any]:
    return {**probe_machine({}, os.environ), "clock_s": 0.0, **changed}


def test_missing_folders_and_packages_of_a_container_are_named() -> None:
    request = {"wrapped": "yes", "parent": "/runs"}
    versions = {"torch": None, "torchvision": "1", "numpy": "2"}
    results = {WRAPPED_HOST: probe_result(marker=False, versions=versions)}
    problems = list(map(str, host_checks.check_hosts(LaunchConfig(), HostProbe(results, query=request))))
    assert problems == [
        "inside --wrap: does not see /runs, the parent of the run directory: mount it into the container",
        "inside --wrap: torch is not installed inside: install fmfsd's dependencies in the image",
    ]


@pytest.mark.usefixtures("processes")
def test_resources_are_those_seen_inside_the_wrapper(tmp_path: Path) -> None:
    """Packages inside may differ from the launcher's, but not the code of fmfsd."""
    cores = sorted(os.sched_getaffinity(0))[:1]
    site = Site(Resources.detect(os.environ), wrap=("taskset", "--cpu-list", str(cores[0])))
    probed = probe_hosts(site, os.environ, run=tmp_path / "run", cwd=str(tmp_path), index=None)
    assert probed.apply_to(site).resources.core_numbers == tuple(cores)
    assert list(host_checks.check_hosts(LaunchConfig(), probed)) == []
    silent = Site(Resources(1), wrap=("sh", "-c", "echo no such image >&2; exit 1"))
    trouble = probe_hosts(silent, os.environ, run=tmp_path / "run", cwd=str(tmp_path), index=None).failures[
        WRAPPED_HOST
    ]
    assert "no such image (behind --wrap or in srun's container, stdin and stdout must reach the agent)" in trouble
