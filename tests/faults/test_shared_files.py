"""A run, its checkpoints and its data on a file system shared by several users."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.checkpoint import CheckpointStore
from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import UnreadableCheckpointError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_regular_file
from launcher.agent.available_resources import Resources
from launcher.check.access_checks import check_code_is_private
from launcher.resources.site import Site
from tests.helpers.checkpoints import list_names, make_checkpoint, make_manager, newest_step, save_and_wait
from tests.helpers.checks import CPU_SITE
from tests.helpers.processes import command
from tests.helpers.runs import TINY, make_run, tiny_config, train_run
from tests.helpers.users import (
    OTHER,
    call_as_other_user,
    common_folder,
    make_accessible_to_all,
    needs_second_user,
    run_as_other_user,
)


def newest(folder: Path) -> str | None:
    return CheckpointStore(folder, keep=2, check_fence=lambda: None).find_newest()


@pytest.fixture
def common() -> Iterator[Path]:
    with common_folder() as folder:
        yield folder


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Return a folder with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save_and_wait(make_manager(tmp_path / "c"), make_checkpoint(step))
    return tmp_path / "c"


@pytest.mark.fault("F15")
def test_a_group_writable_checkpoint_is_valid(checkpoints: Path) -> None:
    make_accessible_to_all(checkpoints)
    assert newest_step(make_manager(checkpoints)) == 2
    assert list_names(checkpoints) == ["step-00000001", "step-00000002"]


@pytest.mark.fault("F15")
@needs_second_user
def test_a_checkpoint_of_another_user_is_valid(checkpoints: Path, common: Path) -> None:
    folder = Path(shutil.copytree(checkpoints, common / "c"))
    make_accessible_to_all(folder)
    assert call_as_other_user(newest, folder) == "step-00000002"
    assert list_names(folder) == ["step-00000001", "step-00000002"]


@pytest.mark.fault("F15")
@needs_second_user
def test_an_unreadable_checkpoint_is_left_alone_and_the_error_names_its_owner(checkpoints: Path, common: Path) -> None:
    """It is not renamed, and no earlier checkpoint is used instead."""
    folder = Path(shutil.copytree(checkpoints, common / "c"))
    make_accessible_to_all(folder)
    (folder / "step-00000002").chmod(0o700)
    error = call_as_other_user(newest, folder)
    assert isinstance(error, UnreadableCheckpointError)
    newer = folder / "step-00000002"
    assert f"checkpoint {newer} can't be read: " in str(error)
    assert f"{newer} belongs to root, who can grant access with `chmod -R go+rX {newer}`" in str(error)
    assert list_names(folder) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.EMFILE])
def test_an_unresponsive_file_system_does_not_count_as_damage(
    number: int, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("fmfsd.checkpoint.store.read_regular_file", fails)
    with pytest.raises(UnreadableCheckpointError, match=f"can't be read: .*{os.strerror(number)}"):
        make_manager(checkpoints).load_newest()
    assert list_names(checkpoints) == ["step-00000001", "step-00000002"]


def test_a_bad_sector_counts_as_damage(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older checkpoint is used."""

    def fails(path: Path) -> bytes:
        if path.parent.name == "step-00000002":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_regular_file(path)

    monkeypatch.setattr("fmfsd.checkpoint.store.read_regular_file", fails)
    assert newest_step(make_manager(checkpoints)) == 1


@pytest.fixture(scope="module")
def colleagues() -> Iterator[Path]:
    """Yield a folder for the data, and a run that its owner stopped after two of four steps."""
    with common_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def stopped(colleagues: Path, tiny_root: Path) -> RunDir:
    shutil.copytree(tiny_root / "cifar10", colleagues / "data" / "cifar10")
    run = make_run(colleagues / "run", tiny_config(colleagues / "data", "train.max_steps=4", "optim.milestones=[]"))
    train_run(SingleWorkerComms(), run.path, 2)
    return run


def copied(run: RunDir, folder: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(run.path, folder)))


@needs_second_user
def test_another_user_resumes_a_world_writable_run(stopped: RunDir, common: Path) -> None:
    run = copied(stopped, common / "run")
    make_accessible_to_all(run.path)
    make_accessible_to_all(stopped.path.parent / "data")
    check = (command("fmfsd-launch"), str(run.config), "--run-dir", str(run.path), "--check")
    done = run_as_other_user(*check, cwd=common)
    assert done.returncode == 0, done.stderr
    done = run_as_other_user(command("fmfsd"), "train", str(run.path), "--device", "cpu", cwd=common)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 2 of 4" in done.stderr
    assert (run.newest_step(), run.damaged_checkpoints()) == (4, [])


@needs_second_user
@pytest.mark.parametrize("denied", ["", "checkpoints", "checkpoints/*/model.safetensors", "logs"])
def test_the_check_rejects_a_run_without_access_rights(denied: str, stopped: RunDir, common: Path) -> None:
    run = copied(stopped, common / "run")
    make_accessible_to_all(run.path)
    make_accessible_to_all(stopped.path.parent / "data")
    config = Path(shutil.copy(run.config, common))
    (path,) = run.path.glob(denied) if denied else [run.path]
    path.chmod(0o700 if path.is_dir() else 0o600)
    done = run_as_other_user(command("fmfsd-launch"), str(config), "--run-dir", str(run.path), "--check", cwd=common)
    assert done.returncode == 3, done.stderr
    assert "no access" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"root, who can grant access with `chmod -R go+rwX {run.path}`" in done.stderr


@needs_second_user
@pytest.mark.parametrize(
    "denied", ["data", "data/cifar10", "data/cifar10/index.json", "data/cifar10/test-0003.safetensors"]
)
def test_the_check_reports_unreadable_data_files(denied: str, tiny_root: Path, common: Path) -> None:
    shutil.copytree(tiny_root / "cifar10", common / "data" / "cifar10")
    make_accessible_to_all(common / "data")
    (common / denied).chmod(0)
    settings = (part for change in (*TINY, f"data.root={common}/data") for part in ("--set", change))
    os.chown(common, OTHER, OTHER)
    done = run_as_other_user(command("fmfsd-launch"), "smoke", *settings, "--check", cwd=common)
    assert done.returncode == 3, done.stderr
    assert "can't be read" in done.stderr
    assert "delete" not in done.stderr
    assert "`chmod -R go+rX" in done.stderr


def test_initial_weights_may_be_group_writable_and_a_symlink(tiny_root: Path, stopped: RunDir, tmp_path: Path) -> None:
    """As in the cache of a model hub."""
    weights = tmp_path / "blob"
    shutil.copy(next(stopped.checkpoints.glob("*/model.safetensors")), weights)
    weights.chmod(0o666)
    (tmp_path / "model.safetensors").symlink_to(weights)
    run = make_run(tmp_path / "run", tiny_config(tiny_root, f"train.init_from={tmp_path}/model.safetensors"))
    assert train_run(SingleWorkerComms(), run.path, 1) == "stopped"


@needs_second_user
@pytest.mark.parametrize("denied", ["checkpoints/step-*", "checkpoints/*/model.safetensors", ""])
def test_the_check_reports_unreadable_initial_weights(denied: str, stopped: RunDir, common: Path) -> None:
    run = copied(stopped, common / "run")
    make_accessible_to_all(run.path)
    make_accessible_to_all(stopped.path.parent / "data")
    os.chown(common, OTHER, OTHER)
    (path,) = run.path.glob(denied) if denied else [run.path]
    path.chmod(0)
    config = Path(shutil.copy(stopped.config, common / "config.yaml"))
    weights = ("--set", f"train.init_from={run.path}")
    done = run_as_other_user(command("fmfsd-launch"), str(config), *weights, "--check", cwd=common)
    assert done.returncode == 3, done.stderr
    assert "train.init_from: " in done.stderr
    assert "can't be read" in done.stderr


def test_a_batch_job_runs_no_code_from_a_folder_writable_by_others(tmp_path: Path) -> None:
    run, cluster = RunDir(tmp_path / "run"), Site(Resources(1), "sbatch", ("{node 0}",))
    run.create()
    assert list(check_code_is_private(run, cluster)) == []
    run.path.chmod(0o770)
    assert list(check_code_is_private(run, CPU_SITE)) == []
    (problem,) = check_code_is_private(run, cluster)
    assert f"`chmod go-w {run.path}` if it is yours" in problem.message


@needs_second_user
def test_the_saved_launch_is_only_trusted_if_no_other_user_could_write_it(stopped: RunDir, common: Path) -> None:
    """Its variables and hosts could run programs as this user."""
    run = copied(stopped, common / "run")
    run.launch.write_text("{}")
    make_accessible_to_all(run.path)
    done = run_as_other_user(command("fmfsd-launch"), "resume", str(run.path), cwd=common)
    assert done.returncode == 3
    assert f"{run.launch} belongs to root and must be your own" in done.stderr
    assert f"`fmfsd-launch {run.config}`, and --run-dir {run.path}" in done.stderr
