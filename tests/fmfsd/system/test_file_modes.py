"""File modes: files that users share follow their umask; files with their environment and keys are private."""

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fmfsd.config import DataConfig
from fmfsd.data.prepare import prepare
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.export.write import export
from fmfsd.report.write import write_report
from fmfsd.run.run_dir import RunDir
from launcher.config.launch_config import LaunchConfig
from launcher.slurm.job_options import build_job_environment
from tests.conftest import quiet
from tests.helpers.official import write_official
from tests.helpers.processes import command, start_launch, wait_until
from tests.helpers.runs import make_run, tiny_config, train_run
from tests.helpers.users import common_folder, needs_second_user, run_as_other_user

UMASKS = [0o022, 0o002, 0o027, 0o077]


@contextmanager
def umask(value: int) -> Iterator[None]:
    previous = os.umask(value)
    try:
        yield
    finally:
        os.umask(previous)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def run(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    changes = ("train.max_steps=1", "optim.milestones=[]")
    run = make_run(tmp_path_factory.mktemp("modes") / "run", tiny_config(tiny_root, *changes))
    train_run(SingleWorkerComms(), run.path)
    return run


@pytest.mark.parametrize("value", UMASKS)
def test_an_export_follows_the_umask(value: int, run: RunDir, tmp_path: Path) -> None:
    """In safetensors format, whose writer creates private files."""
    with umask(value):
        export(run, "safetensors", out=tmp_path / "new" / "served.safetensors")
    assert mode(tmp_path / "new" / "served.safetensors") == 0o666 & ~value
    assert mode(tmp_path / "new") == 0o777 & ~value


@pytest.mark.usefixtures("charts_in_process")
@pytest.mark.parametrize("value", UMASKS)
def test_a_report_follows_the_umask(value: int, run: RunDir, tmp_path: Path) -> None:
    with umask(value):
        write_report([run.path], tmp_path / "report.html")
    assert mode(tmp_path / "report.html") == 0o666 & ~value


@pytest.mark.usefixtures("charts_in_process")
def test_a_run_stays_private_after_a_report_and_an_export(run: RunDir) -> None:
    with umask(0o022):
        write_report([run.path], None)
        export(run, "safetensors")
    assert [mode(path) for path in (run.path, run.checkpoints, run.logs, run.progress)] == [0o700] * 4


@pytest.mark.parametrize("value", UMASKS)
def test_a_prepared_set_follows_the_umask(value: int, tmp_path: Path) -> None:
    source = write_official(tmp_path / "source", "cifar10", train=64, test=16)
    with umask(value):
        data = DataConfig(name="cifar10", root=str(tmp_path / "data"), shards=2)
        prepare(data, source=source, fetch=False, report=quiet)
    (prepared,) = (tmp_path / "data").glob("cifar10*")
    assert {mode(path) for path in (prepared, prepared.parent)} == {0o777 & ~value}
    assert {mode(path) for path in prepared.iterdir()} == {0o666 & ~value}


@pytest.mark.usefixtures("processes")
@needs_second_user
def test_a_prepared_set_can_be_read_by_another_user() -> None:
    with common_folder() as folder:
        source = write_official(folder / "source", "cifar10")
        prepare = ("prepare", "cifar10", "--out", str(folder / "data"), "--source", str(source))
        completed = subprocess.run([command("fmfsd"), "data", *prepare], umask=0o022, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stderr
        completed = run_as_other_user(command("fmfsd"), "data", "verify", str(folder / "data"), cwd=folder)
        assert "intact; 256 train, 64 test samples" in completed.stdout, completed.stderr


@pytest.mark.usefixtures("processes")
def test_a_set_that_a_launch_prepares_follows_the_users_umask(tmp_path: Path) -> None:
    """The launch itself, and all other processes that it starts, create private files."""
    data = tmp_path / "data"
    with (
        umask(0o022),
        start_launch(tmp_path, "run", ("smoke", "--set", f"data.root={data}", "--device", "cpu")) as launch,
    ):
        (index,) = wait_until(lambda: list(data.glob("[!.]*/index.json")), "a set")
        launch.signal(signal.SIGTERM)
        launch.wait_for_end()
    assert (mode(index), mode(index.parent), mode(data)) == (0o644, 0o755, 0o755)


def test_a_batch_job_gets_the_umask_of_the_user_who_submitted_it() -> None:
    """The job's own umask is inherited from the launcher."""
    environment = build_job_environment(LaunchConfig(), Path("/source"), {"FMFSD_UMASK": "022", "FMFSD_ATTEMPT": "1"})
    assert environment["FMFSD_UMASK"] == "022"
    assert "FMFSD_ATTEMPT" not in environment
