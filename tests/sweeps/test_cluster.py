"""A Ray cluster that is there: two machines of Ray's on this one, one of which is killed while a search goes on."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from launcher.hosts.ray_nodes import end, start_head, start_worker
from launcher.resources import Resources
from launcher.tune.cluster import machines_of
from launcher.tune.joiner import answers
from launcher.tune.sweep_dir import SweepDir
from tests.helpers.processes import wait_until
from tests.helpers.searches import arguments, results, sweeping, tune

HERE = "127.0.0.1"


@dataclass
class RayCluster:
    """A head with one core and a further machine with two."""

    address: str
    head: "Popen[bytes]"
    other: "Popen[bytes]"
    environment: dict[str, str]

    def kill_other(self) -> None:
        """All that Ray has there; node agents end by themselves."""
        for process in [*psutil.Process(self.other.pid).children(recursive=True), psutil.Process(self.other.pid)]:
            with suppress(psutil.Error):
                if "ray" in " ".join(process.cmdline()) and "launcher.agent" not in process.cmdline():
                    process.kill()


@pytest.fixture
def ray_cluster() -> Iterator[RayCluster]:
    with tempfile.TemporaryDirectory(prefix="fmfsd-", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        token = Path(folder) / "token"
        token.write_text("a1" * 32)
        token.chmod(0o600)
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        for name, value in environment.items():
            patch.setenv(name, value)
        with socket.create_server((HERE, 0)) as free:
            port = free.getsockname()[1]
        head = start_head(HERE, port, Resources(1), Path(folder) / "head")
        wait_until(lambda: answers(HERE, port), "Ray's head")
        other = start_worker(f"{HERE}:{port}", HERE, Resources(2), Path(folder) / "other")
        sweep = SweepDir(Path(folder) / "sweep")
        wait_until(lambda: len(machines_of(f"{HERE}:{port}", sweep)) == 2, "both machines")
        parents = [psutil.Process(process.pid) for process in (head, other)]
        try:
            yield RayCluster(f"{HERE}:{port}", head, other, environment)
        finally:
            below = [child for parent in parents if parent.is_running() for child in parent.children(recursive=True)]
            for process in (other, head):
                end(process)
            for child in below:
                with suppress(psutil.Error):
                    child.kill()


@pytest.mark.fault("F28")
def test_a_search_on_a_cluster_survives_the_loss_of_a_machine_and_leaves_the_rest_as_it_was(
    ray_cluster: RayCluster, tiny_root: Path, undisturbed: SweepDir, tmp_path: Path
) -> None:
    words = arguments(tiny_root, tmp_path, "--ray-address", ray_cluster.address, "--concurrent", "2")
    with sweeping(*words, cwd=tmp_path, env=ray_cluster.environment) as running:
        running.wait_for(lambda: results(running.sweep), "an end of a trial")
        running.wait_for_trial(3, step=1)
        ray_cluster.kill_other()
        code, output, errors = running.ended()
    assert code == 0, output + errors
    assert results(running.sweep) == results(undisturbed)
    assert ray_cluster.head.poll() is None
    assert answers(*ray_cluster.address.split(":"))  # type: ignore[arg-type]


def test_more_than_any_machine_has_is_refused(ray_cluster: RayCluster, tiny_root: Path, tmp_path: Path) -> None:
    words = arguments(tiny_root, tmp_path, "--ray-address", ray_cluster.address, "--gpus", "4")
    answer = tune(*words, cwd=tmp_path, env=ray_cluster.environment)
    assert answer.returncode == 3, answer.stderr
    assert "a trial asks for 1 x 4 cores" in answer.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_cluster_that_is_not_there_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    with socket.create_server((HERE, 0)) as free:
        address = f"{HERE}:{free.getsockname()[1]}"
    answer = tune(*arguments(tiny_root, tmp_path, "--ray-address", address), cwd=tmp_path, env=dict(os.environ))
    assert answer.returncode == 3, answer.stderr
    assert f"--ray-address {address}" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
