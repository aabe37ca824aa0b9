"""Findings of --doctor about this machine, about machines with faults, and about hosts."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.agent.describe_machine import probe_machine
from launcher.diagnostics.doctor import examine, machine_findings
from launcher.resources.site import Site
from tests.helpers.processes import command
from tests.helpers.sites import localhost_site

pytestmark = pytest.mark.usefixtures("processes")

needs_unshare = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
GPU = {"uuid": "GPU-1", "name": "H100", "memory": 80 << 30, "free": 79 << 30}


def doctor(cwd: Path, *before: str, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Run `fmfsd-launch doctor`, with the command prefix `before`; return its exit code and its findings by
    subject."""
    result = subprocess.run(
        [*before, command("fmfsd-launch"), "doctor", "--json"],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert result.stderr == ""
    return result.returncode, {finding["what"]: finding for finding in json.loads(result.stdout)}


def test_the_findings_describe_this_machine(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path)
    assert code == (3 if any(finding["wrong"] for finding in findings.values()) else 0)
    assert findings["loopback"]["found"] == "works"
    assert findings["this folder"]["found"].startswith(f"{tmp_path}: ")
    assert findings["GPUs"]["found"].endswith("; workers compute on the CPU")
    assert findings["cores"]["found"].startswith(f"{len(os.sched_getaffinity(0))} of ")
    assert "no prepared data set" in findings["data"]["found"]
    assert {"Python", "torch", "torchvision", "memory", "shared memory", "open files", "locked memory"} < set(findings)


def test_prepared_sets_are_listed_and_damaged_ones_are_faults(data_root: Path, tmp_path: Path) -> None:
    code, findings = doctor(tmp_path, FMFSD_DATA=str(data_root))
    assert (code, "256 train, 64 test samples" in findings["FMFSD_DATA"]["found"]) == (0, True)
    (data_root / "cifar10" / "index.json").write_text("{")
    code, findings = doctor(tmp_path, FMFSD_DATA=str(data_root))
    assert (code, "prepare the set again" in findings["FMFSD_DATA"]["wrong"]) == (3, True)


@needs_unshare
def test_a_loopback_that_is_down_is_a_fault(tmp_path: Path) -> None:
    """A real loopback interface, in a network namespace of the test."""
    code, findings = doctor(tmp_path, "unshare", "--net")
    assert (code, findings["loopback"]["wrong"].endswith("ip link set lo up")) == (3, True)
    result = subprocess.run(
        ["unshare", "--net", command("fmfsd-launch"), "smoke", "--check"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr.startswith("loopback: 127.0.0.1: ")) == (3, True)


@needs_unshare
def test_a_full_disk_is_a_fault(tmp_path: Path) -> None:
    full = f'mount -t tmpfs -o size=1m none "{tmp_path}" && cd "{tmp_path}" && exec "$@"'
    code, findings = doctor(tmp_path, "unshare", "--mount", "sh", "-c", full, "sh")
    assert (code, findings["this folder"]["wrong"].startswith("320 MiB are required")) == (3, True)


def with_sinfo(folder: Path, script: str) -> str:
    """Return a PATH that starts with a fake sinfo."""
    (folder / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "sinfo").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_partitions_are_listed_with_their_limits(tmp_path: Path) -> None:
    path = with_sinfo(
        tmp_path, 'case $1 in --version) echo slurm 24.05;; *) echo "gpu*|up|1-00:00:00|4|96|gpu:h100:8";; esac'
    )
    code, findings = doctor(tmp_path, PATH=path)
    assert (code, findings["Slurm"]["found"]) == (0, "slurm 24.05")
    assert findings["Slurm partition"]["found"] == "gpu* up, at most 1-00:00:00: 4 nodes of 96 cores, gpu:h100:8"


def test_a_cluster_that_does_not_answer_does_not_prevent_a_local_launch(tmp_path: Path) -> None:
    path = with_sinfo(tmp_path, "echo Unable to contact slurm controller >&2; exit 1")
    code, findings = doctor(tmp_path, PATH=path)
    assert (code, findings["Slurm"]["found"].endswith("no cluster answers: Unable to contact slurm controller")) == (
        0,
        True,
    )


def test_too_few_open_files_are_a_fault(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path, "sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
    assert (code, findings["open files"]["found"], findings["open files"]["wrong"]) == (
        3,
        "256",
        "ulimit -n 1024 or more",
    )


def test_a_slow_resolver_is_a_fault() -> None:
    assert "host name me" in faults(name_s=10.4, host="me")
    assert "host name me" in faults(name_s=None, host="me")


def faults(**changed: Any) -> dict[str, str]:
    """Return the faults of a machine like this one, with the probe values `changed`."""
    answer = probe_machine({"condition": "/"}, os.environ)
    condition = {**answer["condition"], **{name: changed[name] for name in changed if name in answer["condition"]}}
    findings = machine_findings.findings("there", {**answer, **changed, "condition": condition})
    return {finding.what: finding.wrong for finding in findings if finding.wrong}


def make_driver(*gpus: dict[str, Any], trouble: str = "") -> dict[str, Any]:
    return {"version": "" if trouble else "580.1", "trouble": trouble, "gpus": gpus}


@pytest.mark.parametrize(
    ("changed", "what", "fix"),
    [
        ({"driver": make_driver(trouble="Driver/library version mismatch")}, "NVIDIA driver", "restart the machine"),
        ({"driver": make_driver(GPU, GPU), "gpus": ("0", "1"), "shm": 64 << 20}, "shared memory", "--shm-size=1g"),
        ({"infiniband": True, "locked_memory": 65536}, "locked memory", "ulimit -l unlimited"),
        (
            {
                "driver": make_driver(GPU),
                "gpus": ("0",),
                "gpu_trouble": "torch 2.15.0 is a build without CUDA: install torch from PyPI",
            },
            "GPUs",
            "is a build without CUDA: install torch from PyPI",
        ),
    ],
)
def test_faults_of_a_gpu_machine_are_reported_with_the_fix(changed: dict[str, Any], what: str, fix: str) -> None:
    """With fake probe results: not every machine has GPUs, their driver and InfiniBand."""
    findings = faults(**changed)
    assert list(findings) == [what]
    assert fix in findings[what]


def test_gpus_are_listed_with_their_free_memory() -> None:
    answer = probe_machine({"condition": "/"}, os.environ)
    with_gpus = {**answer, "gpus": ["1"], "condition": {**answer["condition"], "driver": make_driver(GPU, GPU)}}
    findings = {finding.what: finding.found for finding in machine_findings.findings("there", with_gpus)}
    assert findings["GPU 0"] == "H100, 79.0 GiB of 80.0 GiB free"
    assert (findings["GPUs"], findings["NVIDIA driver"]) == ("1 visible, CUDA_VISIBLE_DEVICES hides 1", "580.1")


def test_hosts_are_examined_like_this_machine_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site: Site = localhost_site(n2=("sh", "-c", "echo no route to host >&2; exit 255"))
    code = examine(site, environment=os.environ, cwd=str(tmp_path), as_json=True)
    findings = json.loads(capsys.readouterr().out)
    assert code == 3
    assert {finding["machine"] for finding in findings} == {"this machine", "n1", "hosts"}
    assert [(finding["what"], finding["wrong"]) for finding in findings if finding["wrong"]] == [
        ("n2", "no agent could be started there: no route to host")
    ]


def test_without_json_the_report_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examine(localhost_site(), environment=os.environ, cwd=str(tmp_path), as_json=False)
    text = capsys.readouterr().out
    assert all(name in text for name in ("how to fix it", "this machine", "n1", "n2", "loopback"))
