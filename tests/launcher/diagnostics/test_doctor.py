"""What the doctor says of this machine, of one in a worse state, and of hosts."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.agent.probe import look
from launcher.diagnostics.doctor import examine, machine
from launcher.resources.site import Site
from tests.helpers.processes import command
from tests.helpers.sites import near_site

pytestmark = pytest.mark.usefixtures("processes")

needs_unshare = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
GPU = {"uuid": "GPU-1", "name": "H100", "memory": 80 << 30, "free": 79 << 30}


def doctor(cwd: Path, *before: str, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and findings by what they are of, of a real `fmfsd-launch --doctor`; `before` becomes it."""
    done = subprocess.run(
        [*before, command("fmfsd-launch"), "--doctor", "--json"],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, {finding["what"]: finding for finding in json.loads(done.stdout)}


def test_this_machine_is_told_as_it_is(tmp_path: Path) -> None:
    code, found = doctor(tmp_path)
    assert code == (3 if any(finding["wrong"] for finding in found.values()) else 0)
    assert found["loopback"]["found"] == "works"
    assert found["this folder"]["found"].startswith(f"{tmp_path}: ")
    assert found["GPUs"]["found"].endswith("; workers compute on the CPU")
    assert found["cores"]["found"].startswith(f"{len(os.sched_getaffinity(0))} of ")
    assert "no prepared set" in found["data"]["found"]
    assert {"Python", "torch", "torchvision", "memory", "shared memory", "open files", "locked memory"} < set(found)


def test_prepared_sets_are_listed_and_damaged_ones_are_wrong(prepared: Path, tmp_path: Path) -> None:
    code, found = doctor(tmp_path, FMFSD_DATA=str(prepared))
    assert (code, "256 train, 64 test samples" in found["FMFSD_DATA"]["found"]) == (0, True)
    (prepared / "cifar10" / "index.json").write_text("{")
    code, found = doctor(tmp_path, FMFSD_DATA=str(prepared))
    assert (code, "prepare the set again" in found["FMFSD_DATA"]["wrong"]) == (3, True)


@needs_unshare
def test_a_loopback_that_is_down_is_wrong(tmp_path: Path) -> None:
    """A real one, in a network of the test's own."""
    code, found = doctor(tmp_path, "unshare", "--net")
    assert (code, found["loopback"]["wrong"].endswith("ip link set lo up")) == (3, True)
    done = subprocess.run(
        ["unshare", "--net", command("fmfsd-launch"), "smoke", "--check"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.startswith("loopback: 127.0.0.1: ")) == (3, True)


@needs_unshare
def test_a_disk_that_is_full_is_wrong(tmp_path: Path) -> None:
    full = f'mount -t tmpfs -o size=1m none "{tmp_path}" && cd "{tmp_path}" && exec "$@"'
    code, found = doctor(tmp_path, "unshare", "--mount", "sh", "-c", full, "sh")
    assert (code, found["this folder"]["wrong"].startswith("320 MiB are needed")) == (3, True)


def with_sinfo(folder: Path, script: str) -> str:
    """A PATH on which a stand-in for Slurm's sinfo comes first."""
    (folder / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "sinfo").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_partitions_are_listed_with_their_limits(tmp_path: Path) -> None:
    path = with_sinfo(
        tmp_path, 'case $1 in --version) echo slurm 24.05;; *) echo "gpu*|up|1-00:00:00|4|96|gpu:h100:8";; esac'
    )
    code, found = doctor(tmp_path, PATH=path)
    assert (code, found["Slurm"]["found"]) == (0, "slurm 24.05")
    assert found["Slurm partition"]["found"] == "gpu* up, at most 1-00:00:00: 4 nodes of 96 cores, gpu:h100:8"


def test_a_cluster_that_does_not_answer_is_no_obstacle_to_a_launch_here(tmp_path: Path) -> None:
    path = with_sinfo(tmp_path, "echo Unable to contact slurm controller >&2; exit 1")
    code, found = doctor(tmp_path, PATH=path)
    assert (code, found["Slurm"]["found"].endswith("no cluster answers: Unable to contact slurm controller")) == (
        0,
        True,
    )


def test_too_few_open_files_are_wrong(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
    assert (code, found["open files"]["found"], found["open files"]["wrong"]) == (3, "256", "ulimit -n 1024 or more")


def test_a_resolver_that_is_slow_is_wrong() -> None:
    assert "own name me" in judged(name_s=10.4, host="me")
    assert "own name me" in judged(name_s=None, host="me")


def judged(**changed: Any) -> dict[str, str]:
    """What is wrong with a machine as this one, but for `changed`."""
    answer = look({"condition": "/"}, os.environ)
    condition = {**answer["condition"], **{name: changed[name] for name in changed if name in answer["condition"]}}
    found = machine.findings("there", {**answer, **changed, "condition": condition})
    return {finding.what: finding.wrong for finding in found if finding.wrong}


def one_driver(*gpus: dict[str, Any], trouble: str = "") -> dict[str, Any]:
    return {"version": "" if trouble else "580.1", "trouble": trouble, "gpus": gpus}


@pytest.mark.parametrize(
    ("changed", "what", "fix"),
    [
        ({"driver": one_driver(trouble="Driver/library version mismatch")}, "NVIDIA driver", "restart the machine"),
        ({"driver": one_driver(GPU, GPU), "gpus": ("0", "1"), "shm": 64 << 20}, "shared memory", "--shm-size=1g"),
        ({"infiniband": True, "locked_memory": 65536}, "locked memory", "ulimit -l unlimited"),
        (
            {
                "driver": one_driver(GPU),
                "gpus": ("0",),
                "gpu_trouble": "torch 2.15.0 is a build without CUDA: install torch from PyPI",
            },
            "GPUs",
            "is a build without CUDA: install torch from PyPI",
        ),
    ],
)
def test_what_a_machine_with_gpus_lacks_is_told_with_the_fix(changed: dict[str, Any], what: str, fix: str) -> None:
    """Stand-in answers: GPUs, their driver and InfiniBand are not everywhere."""
    found = judged(**changed)
    assert list(found) == [what]
    assert fix in found[what]


def test_gpus_are_told_with_what_is_free_of_them() -> None:
    answer = look({"condition": "/"}, os.environ)
    told = {**answer, "gpus": ["1"], "condition": {**answer["condition"], "driver": one_driver(GPU, GPU)}}
    found = {finding.what: finding.found for finding in machine.findings("there", told)}
    assert found["GPU 0"] == "H100, 79.0 GiB of 80.0 GiB free"
    assert (found["GPUs"], found["NVIDIA driver"]) == ("1 visible, CUDA_VISIBLE_DEVICES hides 1", "580.1")


def test_hosts_are_examined_like_this_machine_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site: Site = near_site(n2=("sh", "-c", "echo no route to host >&2; exit 255"))
    code = examine(site, environment=os.environ, cwd=str(tmp_path), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert code == 3
    assert {finding["machine"] for finding in found} == {"this machine", "n1", "hosts"}
    assert [(finding["what"], finding["wrong"]) for finding in found if finding["wrong"]] == [
        ("n2", "no agent could be started there: no route to host")
    ]


def test_the_report_is_a_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examine(near_site(), environment=os.environ, cwd=str(tmp_path), as_json=False)
    text = capsys.readouterr().out
    assert all(name in text for name in ("what to mend", "this machine", "n1", "n2", "loopback"))
