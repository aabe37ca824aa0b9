"""Resolving the site: from command-line options to where a launch runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from fmfsd.errors import ConfigError
from launcher.config.launch_config import Host, LaunchConfig, SlurmOptions
from launcher.resources.resolve_site import resolve_site
from launcher.transport import slurm_commands
from launcher.transport.ssh import agent_command, parse_hosts

A, B = Host("a"), Host("b")
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_CPUS_PER_NODE": "8(x2)"}


@pytest.mark.parametrize(
    ("launch", "nodes", "expected"),
    [
        (LaunchConfig(), None, ("here", (), 1, None)),
        (LaunchConfig(), 3, ("here", (), 3, None)),
        (LaunchConfig(hosts=(A, B)), None, ("ssh", ("a", "b"), 2, None)),
        (LaunchConfig(hosts=(A, B)), 1, ("ssh", ("a",), 1, None)),
        (LaunchConfig(hosts=(Host("a", 8), Host("b", 4))), None, ("ssh", ("a", "b"), 2, 4)),
        (LaunchConfig(on="slurm"), 2, ("sbatch", ("{node 0}", "{node 1}"), 2, None)),
    ],
)
def test_nodes_are_this_machine_or_hosts_or_chosen_by_slurm(
    launch: LaunchConfig, nodes: int | None, expected: tuple[str, tuple[str, ...], int, int | None]
) -> None:
    site, settled = resolve_site(launch, nodes=nodes, environment={})
    assert (site.transport, site.hosts, settled.nodes, settled.gpus) == expected


@pytest.mark.parametrize(
    ("launch", "nodes", "environment", "expected"),
    [
        (LaunchConfig(hosts=(A,)), 2, {}, "--nodes: 2 requested, 1 available: a"),
        (
            LaunchConfig(hosts=(Host("a", 4),), gpus=8),
            None,
            {},
            "--gpus: 8 requested, but the hostfile",
        ),
        (LaunchConfig(hosts=(A,), on="local"), None, {}, "--on, --hosts: local contradicts the ssh hosts a"),
        (
            LaunchConfig(hosts=(A,)),
            None,
            JOB,
            "--hosts: given inside Slurm job 7: add --on ssh, or leave the hosts out",
        ),
        (LaunchConfig(on="ssh"), None, {}, "--on ssh: no hosts given:"),
        (LaunchConfig(slurm=SlurmOptions(time="1:00")), None, {}, "--on: options of a batch job without --on slurm"),
    ],
)
def test_contradicting_options_are_refused(
    launch: LaunchConfig, nodes: int | None, environment: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_site(launch, nodes=nodes, environment=environment)
    assert str(raised.value).startswith(expected)


def test_with_on_ssh_given_hosts_are_reached_by_ssh_inside_a_job() -> None:
    site, _ = resolve_site(LaunchConfig(hosts=(A,), on="ssh"), nodes=None, environment=JOB)
    assert site.transport == "ssh"


def test_hosts_are_assumed_to_have_the_requested_gpus() -> None:
    requested = LaunchConfig(hosts=(A, B), gpus=4)
    site, settled = resolve_site(requested, nodes=None, environment={})
    assert site.placement(settled) == ("cuda", 4)
    site, settled = resolve_site(replace(requested, device="cpu"), nodes=None, environment={})
    assert site.placement(settled) == ("cpu", 4)


def test_a_hostfile_has_a_host_per_line_with_optional_slots(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# ours\na slots=8\n\n me@b.example   slots = 4  # the old one\nc\n")
    assert parse_hosts(None, file) == (Host("a", 8), Host("me@b.example", 4), Host("c"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a slots=0\nb c\n", ["hosts:1: expected `host` or `host slots=N`, found 'a slots=0'", "hosts:2: expected"]),
        ("-oProxyCommand=x\n", ["hosts:1: '-oProxyCommand=x' is not a valid host name"]),
        ("a\na\n", ["hosts:1: a is listed twice"]),
        ("# none\n", ["names no host"]),
    ],
)
def test_problems_in_a_hostfile_are_reported_with_their_line(text: str, expected: list[str], tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        parse_hosts(None, file)
    assert all(part in str(raised.value) for part in expected)


def test_ssh_is_non_interactive_and_passes_only_python_path_variables() -> None:
    modules = {"PYTHONPATH": "/our modules", "PYTHONNOUSERSITE": "1"}
    argv = agent_command("a", {**modules, "HF_TOKEN": "canary"}, deadline_s=60)
    assert argv[:5] == ("ssh", "-o", "IgnoreUnknown=*", "-o", "BatchMode=yes")
    assert argv[-3:-1] == ("--", "a")
    assert argv[-1].startswith("exec env PYTHONNOUSERSITE=1 'PYTHONPATH=/our modules' ")
    assert "canary" not in " ".join(argv)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_GPUS_ON_NODE": "3", "SLURM_JOB_GPUS": "0,1"}, 3),
        ({"SLURM_JOB_GPUS": "0-2,5"}, 4),
        ({"SLURM_GPUS_PER_NODE": "4"}, 4),
        ({"SLURM_GPUS_PER_NODE": "a100:2,h100:1"}, 3),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1a,GPU-2b"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2),
        ({}, 2),
    ],
)
def test_gpus_of_an_allocation_come_from_variables_or_from_scontrol(
    variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    details = """
   NumNodes=2 NumCPUs=4 NumTasks=2 CPUs/Task=2 ReqB:S:C:T=0:0:*:*
   JOB_GRES=gpu:a100:5
     Nodes=n1 CPU_IDs=0-1 Mem=2 GRES=gpu:a100:3(IDX:0-2)
     Nodes=n2 CPU_IDs=0-1 Mem=2 GRES=gpu:a100:1(IDX:0),gpu:1(IDX:1),shard:4(IDX:0)
"""
    monkeypatch.setattr(slurm_commands, "_run_checked", lambda *_: details)
    monkeypatch.setattr(slurm_commands, "expand_nodelist", lambda _: ("n1", "n2"))
    site, _ = resolve_site(LaunchConfig(), nodes=None, environment={**JOB, **variables})
    assert len(site.resources.gpus) == expected
