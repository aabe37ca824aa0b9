"""File systems without hard links, fsync of folders, or locks; strace injects the faults."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import CheckError
from fmfsd.export.write import export
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import describe_mount
from fmfsd.system.file_locks import (
    LOCK_VARIABLE,
    StaleLockError,
    choose_lock_method,
    find_lock_problem,
    hold_lock,
    lock_file,
    wait_for_lock,
)
from launcher.run_dir.run_lock import RunInUseError, hold_run_lock
from tests.helpers.leaks import CHECKOUT
from tests.helpers.official import write_official
from tests.helpers.processes import command, run_command
from tests.helpers.runs import TINY, make_run, tiny_config, train_run

DEADLINE_S = 60.0


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(not can_trace(), reason="needs strace, and processes that can be traced")


def faulty(fault: str, *argv: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `argv` with strace failing every system call that `fault` names."""
    strace = ["strace", "-f", "-qq", "-o", str(cwd / "strace"), "-e", f"inject={fault}"]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [*strace, *argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert "INJECTED" in (cwd / "strace").read_text(), "the fault happened"
    return done


def prepare_arguments(folder: Path) -> tuple[str, ...]:
    source = write_official(folder / "source", "cifar10")
    return (command("fmfsd"), "data", "prepare", "cifar10", "--out", str(folder / "data"), "--source", str(source))


@needs_strace
@pytest.mark.parametrize("error", ["EINVAL", "EOPNOTSUPP"])
def test_a_data_set_is_prepared_where_folders_can_not_be_fsynced(error: str, tmp_path: Path) -> None:
    done = faulty(f"fsync:error={error}", *prepare_arguments(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


GIVE_NAME = """import sys; from pathlib import Path; from fmfsd.system.atomic_files import rename_no_replace
rename_no_replace(*map(Path, sys.argv[1:]))"""


@needs_strace
@pytest.mark.parametrize("error", ["EPERM", "EOPNOTSUPP", "EMLINK"])
def test_a_finished_file_is_renamed_without_hard_links(error: str, tmp_path: Path) -> None:
    """An existing file is not overwritten either."""
    for text in ("first", "second"):
        (tmp_path / "beside").write_text(text)
        argv = (sys.executable, "-c", GIVE_NAME, str(tmp_path / "beside"), str(tmp_path / "export"))
        done = faulty(f"link,linkat:error={error}", *argv, cwd=tmp_path, PYTHONPATH=str(CHECKOUT))
        assert (tmp_path / "export").read_text() == "first"
        assert ("FileExistsError" in done.stderr) == (text == "second")
        assert (tmp_path / "beside").exists() == (text == "second")


def test_an_export_works_without_hard_links(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", tiny_config(tiny_root, "train.max_steps=1", "optim.milestones=[]"))
    train_run(SingleWorkerComms(), run.path)

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    made = export(run, "safetensors", out=tmp_path / "served.safetensors")
    assert [path.name for path in tmp_path.iterdir() if "served" in path.name] == ["served.safetensors"], made


@needs_strace
@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS"])
def test_a_data_set_is_prepared_without_flock_if_the_lock_method_is_set(error: str, tmp_path: Path) -> None:
    arguments, fault = prepare_arguments(tmp_path), f"flock:error={error}"
    done = faulty(fault, *arguments, cwd=tmp_path)
    assert done.returncode == 3
    assert f"the file system of {describe_mount(tmp_path)} does not support locks (flock: " in done.stderr
    assert f"set {LOCK_VARIABLE}=file" in done.stderr
    done = subprocess.run(arguments, env={**os.environ, LOCK_VARIABLE: "file"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "data").glob(".*.held"))


@needs_strace
@pytest.mark.fault("F34")
def test_the_check_reports_that_a_run_can_not_be_locked(tiny_root: Path, tmp_path: Path) -> None:
    settings = (part for change in (*TINY, f"data.root={tiny_root}") for part in ("--set", change))
    launch = (command("fmfsd-launch"), "smoke", *settings, "--run-dir", str(tmp_path / "run"))
    for arguments in ((*launch, "--check"), launch):
        done = faulty("flock:error=ENOLCK", *arguments, cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert (
            f"{tmp_path}/run/lock: the file system of {describe_mount(tmp_path)} does not support locks" in done.stderr
        )
    done = run_command(*("fmfsd-launch", *launch[1:]), "--check", cwd=tmp_path, env={LOCK_VARIABLE: "file"})
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"strace"}


@pytest.fixture
def lock_files() -> Iterator[None]:
    choose_lock_method({LOCK_VARIABLE: "file"})
    yield
    choose_lock_method({})


def test_a_run_is_locked_by_a_file_without_flock(lock_files: None, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    message = rf"in use by another launch \(process {os.getpid()}.*`rm {run.path}"
    with hold_run_lock(run):
        with pytest.raises(RunInUseError, match=message), hold_run_lock(run):
            pass
        assert "if that process has ended" in find_lock_problem(run.lock)
    assert find_lock_problem(run.lock) == ""
    assert run.is_unused()


LEAVE_LOCK = """
import sys
from pathlib import Path
from fmfsd.system.file_locks import _create_exclusively
_create_exclusively(Path(sys.argv[1]))
"""


def leave_stale_lock(lock: Path) -> int:
    """Return the pid of a process that has ended without releasing the lock."""
    child = subprocess.Popen(
        [sys.executable, "-c", LEAVE_LOCK, str(lock)], env={**os.environ, "PYTHONPATH": str(CHECKOUT)}
    )
    assert child.wait() == 0
    return child.pid


def test_a_stale_lock_file_is_an_error_and_not_waited_for(lock_files: None, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    pid, marker = leave_stale_lock(run.lock), lock_file(run.lock)
    message = rf"{marker} was left behind by process {pid} on .*, which has ended: `rm {marker}`"
    assert re.match(message, find_lock_problem(run.lock))
    with pytest.raises(StaleLockError, match=message), wait_for_lock(run.lock, pytest.fail):
        pass
    with pytest.raises(CheckError, match=message), hold_run_lock(run):
        pass
    assert run.is_unused()
    marker.unlink()
    with hold_run_lock(run):
        pass


@pytest.mark.fault("F36")
@pytest.mark.parametrize("method", ["flock", "file"])
def test_a_process_that_waits_for_a_lock_reports_the_holder(method: str, tmp_path: Path) -> None:
    arguments = prepare_arguments(tmp_path)
    (tmp_path / "data").mkdir()
    choose_lock_method({LOCK_VARIABLE: method})
    try:
        with hold_lock(tmp_path / "data" / ".cifar10.lock"):
            environment = {**os.environ, LOCK_VARIABLE: method}
            waiting = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
            assert waiting.stderr is not None
            assert f"by process {os.getpid()} on " in waiting.stderr.readline()
        _, rest = waiting.communicate(timeout=DEADLINE_S)
    finally:
        choose_lock_method({})
    assert waiting.returncode == 0, rest


def test_an_existing_data_set_needs_no_lock(tiny_root: Path, tmp_path: Path) -> None:
    """A user with read access only can't take a lock."""
    data = Path(shutil.copytree(tiny_root / "cifar10", tmp_path / "data" / "cifar10")).parent
    with hold_lock(data / ".cifar10.lock"):
        source = str(tiny_root / "source")
        done = run_command("fmfsd", "data", "prepare", "cifar10", "--out", str(data), "--source", source, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
