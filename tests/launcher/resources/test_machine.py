"""The resources of a machine: CPU quotas of control groups, and installed GPUs that are not usable."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmfsd.system import cgroups
from fmfsd.system.cpu_count import usable_cores
from launcher.agent import available_resources, cgroup, torch_cuda_version
from launcher.agent.available_resources import Resources
from launcher.agent.describe_machine import probe_machine
from launcher.agent.visible_gpus import Gpu, GpuDriver, query_driver
from launcher.check import host_checks, machine_checks
from launcher.config.launch_config import LaunchConfig
from launcher.resources.host_probe import HostProbe
from launcher.resources.site import Site
from tests.helpers.processes import command, wait_until

AUTO, ROOT = LaunchConfig(), Path("/sys/fs/cgroup")
TWO = GpuDriver("580.1", gpus=(Gpu("GPU-1", "H100"), Gpu("GPU-2", "H100")))
MISMATCH = GpuDriver(trouble="Driver/library version mismatch")
V1, V2 = "4:cpu,cpuacct:/a/b\n1:memory:/\n", "0::/a/b\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 1),
        (V2, {"a/b/cpu.max": "300000 100000", "a/cpu.max": "max 100000", "cpu.max": "200000 100000"}, 2),
        (V2, {"cpu.max": "310000 100000"}, 3),
        (V2, {"a/b/cpu.max": "max 100000"}, 8),
        (V1, {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        (V2, {}, 8),
    ],
)
def test_the_smallest_quota_of_a_group_and_its_parents_counts(
    own: str, files: Mapping[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with eight cores, for the launcher and for a worker. A container may not see its own group."""
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for module, root, path in ((cgroup, "_ROOT", "_OWN"), (cgroups, "CGROUP_ROOT", "PROC_CGROUP")):
        monkeypatch.setattr(module, root, tmp_path / "groups")
        monkeypatch.setattr(module, path, tmp_path / "own")
    assert (Resources.detect({}).cores, usable_cores()) == (expected, expected)


@pytest.fixture
def inner_group() -> Iterator[Path]:
    """Yield a real control group without a quota, whose parent may use half a core."""
    v1 = (ROOT / "cpu").is_dir()
    outer = (ROOT / "cpu" if v1 else ROOT) / f"fmfsd-test-{os.getpid()}"
    inner = outer / "inner"
    try:
        inner.mkdir(parents=True)
        (outer / ("cpu.cfs_quota_us" if v1 else "cpu.max")).write_text("50000" if v1 else "50000 100000")
        yield inner
    except OSError as error:
        pytest.skip(f"no control group with a quota can be created here: {error}")
    finally:
        wait_until(lambda: _removed(inner) and _removed(outer), "the removal of the control groups", deadline_s=10)


def _removed(folder: Path) -> bool:
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


@pytest.mark.usefixtures("processes")
def test_half_a_core_of_a_real_parent_group_is_one_thread(inner_group: Path) -> None:
    code = (
        "from launcher.agent.available_resources import Resources; from fmfsd.system.cpu_count import usable_cores\n"
        "print(Resources.detect({}).cores, usable_cores())"
    )
    inside = ("sh", "-c", f'echo $$ > {inner_group}/cgroup.procs && exec "$@"', "sh", sys.executable, "-c", code)
    assert subprocess.run(inside, check=True, capture_output=True, text=True).stdout == "1 1\n"


def gpu_problems(monkeypatch: pytest.MonkeyPatch, gpu_driver: GpuDriver, **environment: str) -> list[str]:
    """Return the problems of this machine with this driver; a host with the same probe result must have the same."""
    monkeypatch.setattr(available_resources, "query_driver", lambda: gpu_driver)
    site = Site(Resources.detect(environment))
    here = list(map(str, machine_checks.check_gpus_usable(AUTO, site)))
    answer = {**probe_machine({}, environment), "clock_s": 0.0}
    assert here == [
        str(each).replace("n1:", "--device auto:") for each in host_checks.check_hosts(AUTO, HostProbe({"n1": answer}))
    ]
    assert list(machine_checks.check_gpus_usable(LaunchConfig(device="cpu"), site)) == []
    return here


@pytest.mark.fault("F61")
@pytest.mark.parametrize(
    ("gpu_driver", "environment", "expected"),
    [
        (
            MISMATCH,
            {},
            "this machine has NVIDIA GPUs, and their driver does not respond: Driver/library version mismatch",
        ),
        (TWO, {"CUDA_VISIBLE_DEVICES": "7"}, "2 GPUs are installed, and CUDA_VISIBLE_DEVICES is '7'"),
        (
            GpuDriver(),
            {"SLURM_GPUS_ON_NODE": "4"},
            "Slurm granted 4 GPUs, and none is visible (CUDA_VISIBLE_DEVICES is not set)",
        ),
        (
            MISMATCH,
            {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0"},
            "Slurm granted 4 GPUs, and none is visible (CUDA_VISIBLE_DEVICES is '0'; NVIDIA's driver: Driver/library",
        ),
    ],
)
def test_installed_gpus_that_are_not_visible_are_refused(
    gpu_driver: GpuDriver, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (message,) = gpu_problems(monkeypatch, gpu_driver, **environment)
    assert message.startswith(f"--device auto: {expected}")
    assert message.endswith(machine_checks.NO_GPU_REMEDY)


@pytest.mark.parametrize(
    ("gpu_driver", "environment"),
    [
        (GpuDriver(), {}),
        (GpuDriver("580.1"), {"SLURM_GPUS_ON_NODE": "0"}),
        (TWO, {}),
        (TWO, {"CUDA_VISIBLE_DEVICES": ""}),
        (MISMATCH, {"CUDA_VISIBLE_DEVICES": "-1"}),
        (GpuDriver(), {"CUDA_VISIBLE_DEVICES": "0"}),
    ],
)
def test_no_gpu_is_accepted_if_none_is_installed_or_all_are_hidden(
    gpu_driver: GpuDriver, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_problems(monkeypatch, gpu_driver, **environment) == []


def test_amd_gpus_are_reported_as_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available_resources, "_AMD_CONTROL", tmp_path)
    site = Site(Resources.detect({"CUDA_VISIBLE_DEVICES": ""}))
    (message,) = machine_checks.warn_unsupported_gpus(AUTO, site)
    assert message.startswith("this machine has AMD GPUs, which are not supported")
    (host_message,) = host_checks.warn_about_hosts(
        HostProbe({"n1": {**probe_machine({}, {"CUDA_VISIBLE_DEVICES": ""}), "clock_s": 0.0}})
    )
    assert host_message == "n1: it has AMD GPUs, which are not supported"


WITH_NVIDIA_CONTROL = """
mkdir -p "$1" && mount -t tmpfs none "$1" && cd "$1" || exit 1
for each in null zero random urandom; do : > $each; mount --bind /dev/$each $each; done
: > nvidiactl
mkdir shm; mount -t tmpfs none shm; mount --move "$1" /dev
cd "$2" || exit 1
shift 2
exec env -u CUDA_VISIBLE_DEVICES "$@"
"""


@pytest.mark.fault("F61")
@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.skipif(bool(query_driver().gpus), reason="needs a machine whose NVIDIA library is missing or broken")
def test_a_launch_with_a_real_driver_that_does_not_respond_is_refused(tmp_path: Path) -> None:
    """The error message is that of the library."""
    inside = ("unshare", "--mount", "sh", "-c", WITH_NVIDIA_CONTROL, "sh", str(tmp_path / "dev"), str(tmp_path))
    check = (command("fmfsd-launch"), "smoke", "--dry-run")
    result = subprocess.run((*inside, *check), capture_output=True, text=True)
    assert result.returncode == 3, result.stdout + result.stderr
    assert "--device auto: this machine has NVIDIA GPUs, and their driver does not respond: NVML" in result.stderr
    on_cpu = subprocess.run((*inside, *check, "--device", "cpu"), capture_output=True, text=True)
    assert on_cpu.returncode == 0, on_cpu.stderr


NEW_TORCH = "__version__ = '2.15.0+cu132'\ncuda: Optional[str] = '13.2'\nhip: Optional[str] = None\n"
CPU_TORCH = "__version__ = '2.15.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"
GPU = (Gpu("GPU-1", "H100"),)


@pytest.mark.fault("F61")
@pytest.mark.parametrize(
    ("build", "gpu_driver", "expected"),
    [
        (
            NEW_TORCH,
            GpuDriver("535.1", gpus=GPU, cuda=(12, 2)),
            "driver 535.1 supports CUDA 12.2, and torch was built for CUDA 13.2",
        ),
        (NEW_TORCH, GpuDriver("580.1", gpus=GPU, cuda=(13, 0)), ""),
        (NEW_TORCH, GpuDriver("600.1", gpus=GPU, cuda=(14, 0)), ""),
        (NEW_TORCH, GpuDriver("580.1", gpus=GPU), ""),
        (CPU_TORCH, GpuDriver("580.1", gpus=GPU, cuda=(13, 0)), "is a build without CUDA: install torch from PyPI"),
        (CPU_TORCH, GpuDriver(), ""),
        ("", GpuDriver("580.1", gpus=GPU, cuda=(13, 0)), ""),
    ],
)
def test_a_torch_that_can_not_use_the_gpus_of_this_machine_is_refused(
    build: str, gpu_driver: GpuDriver, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Determined from torch's version file; torch is not imported."""
    (tmp_path / "version.py").write_text(build)
    monkeypatch.setattr(
        torch_cuda_version, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    )
    problems = gpu_problems(monkeypatch, gpu_driver)
    assert [expected in problem for problem in problems] == ([True] if expected else [])


def test_the_cuda_of_the_installed_torch_is_read_from_its_file() -> None:
    expected = torch.version.cuda
    assert torch_cuda_version.torch_cuda_version() == (tuple(map(int, expected.split("."))) if expected else (0, 0))
