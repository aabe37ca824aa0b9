"""Checks of hosts that differ from each other, with modified probe results."""

import os
from pathlib import Path
from typing import Any

import pytest

from fmfsd.system.atomic_files import sha256
from launcher.agent.describe_machine import probe_machine
from launcher.check import host_checks
from launcher.config.launch_config import LaunchConfig
from launcher.resources.host_probe import HostProbe
from tests.helpers.checks import assert_no_problems, run_failing_checks
from tests.helpers.runs import tiny_config

ONE = LaunchConfig()


def probe_with(**changed: Any) -> HostProbe:
    """Return probe results of n1, which equals this machine, and of n2 with the `changed` values."""
    here = {**probe_machine({}, os.environ), "clock_s": 0.0}
    return HostProbe({"n1": here, "n2": {**here, **changed}}, here=here)


@pytest.mark.fault("F45")
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"python": "3.13.1"}, ["Python: not the same everywhere: 3.", ", n1; 3.13 on n2: use one environment"]),
        ({"versions": {"torch": "2.14.0"}}, ["torch: not the same everywhere: 2.", "; 2.14.0 on n2", "none on n2"]),
        ({"source": "f" * 64}, ["code of fmfsd: not the same everywhere", "; sum ffffffffffff on n2"]),
    ],
)
def test_other_software_on_a_host_is_refused(changed: dict[str, Any], expected: list[str], data_root: Path) -> None:
    code, text = run_failing_checks(tiny_config(data_root), host_probe=probe_with(**changed))
    assert code == 3
    assert all(part in text for part in expected), text


def test_a_host_with_another_version_may_report_other_fields() -> None:
    probed = probe_with(source="f" * 64, interfaces=["lo"])
    older = {name: value for name, value in probed.answers["n2"].items() if name not in ("gpu_trouble", "amd_gpus")}
    probed = HostProbe({**probed.answers, "n2": older}, here=probed.here)
    (message,) = map(str, host_checks.check_hosts(LaunchConfig(nodes=2), probed))
    assert message.startswith("code of fmfsd: not the same everywhere")
    assert list(host_checks.warn_about_hosts(probed)) == []


def test_another_timm_on_a_host_is_refused_if_the_backbone_is_from_timm(data_root: Path) -> None:
    probed = probe_with(versions={**probe_machine({}, {})["versions"], "timm": "0.9.0"})
    code, text = run_failing_checks(tiny_config(data_root, "model.backbone=timm/test_resnet"), host_probe=probed)
    assert (code, "timm: not the same everywhere: " in text, "; 0.9.0 on n2" in text) == (3, True, True), text
    assert list(host_checks.check_timm_versions(tiny_config(data_root), probed)) == []


def test_a_patch_release_of_python_is_no_difference() -> None:
    same = ".".join(probe_machine({}, {})["python"].split(".")[:2])
    assert list(host_checks.check_hosts(ONE, probe_with(python=f"{same}.99"))) == []


def test_a_host_with_the_same_data_passes(data_root: Path) -> None:
    index = sha256(data_root / "cifar10" / "index.json")
    probed = probe_with(index=index)
    assert_no_problems(tiny_config(data_root), host_probe=HostProbe({"n2": probed.answers["n2"]}, here=probed.here))


@pytest.mark.parametrize(
    ("there", "expected"),
    [(None, "n2: can't read "), ("0" * 64, "n2: has another data set at ")],
)
def test_a_host_with_other_data_or_none_is_refused(there: str | None, expected: str, data_root: Path) -> None:
    probed = probe_with(index=there)
    code, text = run_failing_checks(
        tiny_config(data_root), host_probe=HostProbe({"n2": probed.answers["n2"]}, here=probed.here)
    )
    assert (code, expected in text) == (3, True), text


def test_data_that_the_launch_prepares_may_be_missing_on_hosts(tmp_path: Path) -> None:
    assert_no_problems(tiny_config(tmp_path / "new"), host_probe=probe_with(index=None))


def test_hosts_that_do_not_answer_are_reported_together_with_other_problems(data_root: Path) -> None:
    silent = HostProbe(failures={"n1": "no route to host", "n2": "no answer in 30 s"})
    code, text = run_failing_checks(tiny_config(data_root), LaunchConfig(gpus=3), host_probe=silent)
    assert code == 2
    for part in ("n1: no route to host", "n2: no answer in 30 s", "3 workers do not divide"):
        assert part in text


def test_an_interface_that_a_host_lacks_is_named() -> None:
    messages = [
        str(each)
        for each in host_checks.check_hosts(
            LaunchConfig(interface="ib0"), probe_with(interfaces={"lo": ["127.0.0.1"], "ib0": ["10.0.0.1"]})
        )
    ]
    assert len(messages) == 1
    assert messages[0].startswith("n1: has no interface ib0 with an IPv4 address; there are lo")


def test_a_host_without_ipv4_is_refused_if_there_are_several_nodes() -> None:
    probed = HostProbe({"n2": probe_with(interfaces={"lo": ["127.0.0.1"]}).answers["n2"]})
    (message,) = map(str, host_checks.check_hosts(LaunchConfig(nodes=2), probed))
    assert message.startswith("n2: has no IPv4 address except loopback's")
    assert list(host_checks.check_hosts(ONE, probed)) == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"cwd": False}, "n2: the working directory /work is missing"),
        ({"parent": False}, "n2: can't write in /runs, the parent of the run directory"),
        ({"marker": False, "parent": False}, "n2: does not see a file that was just written in /runs"),
    ],
)
def test_folders_that_a_host_lacks_are_named(answer: dict[str, Any], expected: str) -> None:
    probed = probe_with(**answer)
    (message,) = host_checks.check_hosts(
        ONE, HostProbe(probed.answers, here=probed.here, query={"cwd": "/work", "parent": "/runs"})
    )
    assert str(message).startswith(expected)


@pytest.mark.fault("F32")
@pytest.mark.parametrize(("clock_s", "expected"), [(4.0, []), (60.0, ["60 s ahead of"]), (-3600.0, ["3600 s behind"])])
def test_a_wrong_clock_is_only_a_warning(clock_s: float, expected: list[str]) -> None:
    messages = list(host_checks.warn_about_hosts(probe_with(clock_s=clock_s)))
    assert len(messages) == len(expected)
    assert all(f"n2: its clock is {part} ours" in text for part, text in zip(expected, messages, strict=True))


def test_different_numbers_of_gpus_are_a_warning() -> None:
    (message,) = host_checks.warn_about_hosts(probe_with(gpus=["0", "1"]))
    assert message.startswith("hosts have different numbers of GPUs (n1 0, n2 2)")


def test_workers_do_not_fall_back_to_the_cpu_because_one_host_has_lost_its_gpus() -> None:
    probed = probe_with(gpus=["0", "1"])
    (message,) = map(str, host_checks.check_hosts(LaunchConfig(), probed))
    assert message.startswith("--device auto: no GPU is visible on n1, but other hosts have some")
    assert list(host_checks.check_hosts(LaunchConfig(device="cpu"), probed)) == []
