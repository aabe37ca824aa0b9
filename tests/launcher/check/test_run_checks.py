"""Checks before a run is resumed, and the manifest entry of each launch."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from fmfsd.config import dump_config
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from launcher.check.run_checks import warn_short_grace
from launcher.config.launch_config import LaunchConfig
from launcher.run_dir.manifest import (
    COMMIT_FILE,
    find_software_changes,
    list_uncommitted_files,
    new_launch_entry,
    new_manifest,
    read_commit,
)
from launcher.run_dir.run_lock import hold_run_lock
from tests.helpers.checks import assert_no_problems, run_failing_checks
from tests.helpers.processes import command
from tests.helpers.runs import tiny_config


def test_a_run_is_resumed_only_with_its_own_images(data_root: Path, tmp_path: Path) -> None:
    config, run = tiny_config(data_root), RunDir(tmp_path / "run")
    run.create()
    run.config.write_text(dump_config(config))
    write_json(run.manifest, new_manifest(config, new_launch_entry(["fmfsd-launch"])))
    assert_no_problems(config, run=run)
    index = json.loads((data_root / "cifar10" / "index.json").read_text())
    write_json(data_root / "cifar10" / "index.json", {**index, "seed": 1})
    code, text = run_failing_checks(config, run=run)
    assert code == 3
    assert f"cifar10: is not the data set of {run.path}" in text


def test_files_of_a_launch_that_was_killed_early_are_accepted(data_root: Path, tmp_path: Path) -> None:
    config, run = tiny_config(data_root), RunDir(tmp_path / "run")
    run.create()
    run.lock.touch()
    write_json(run.manifest, new_manifest(config, new_launch_entry(["fmfsd-launch"])))
    assert_no_problems(config, run=run)


def test_the_manifest_has_the_command_without_secrets(data_root: Path, tmp_path: Path) -> None:
    argv = ["fmfsd-launch", "--env", "MY_TOKEN=canary", "--env=MY_TOKEN=canary", "--set", "optim.lr=0.1"]
    content = new_manifest(tiny_config(data_root), new_launch_entry(argv))
    assert content["launches"][0]["command"] == [
        "fmfsd-launch",
        "--env",
        "MY_TOKEN=***",
        "--env=MY_TOKEN=***",
        "--set",
        "optim.lr=0.1",
    ]


def test_the_commit_is_found_however_git_stores_the_ref(tmp_path: Path) -> None:
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert read_commit(tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs with: peeled fully-peeled sorted\naaaa refs/heads/main\n^cccc\n")
    assert read_commit(tmp_path) == "aaaa"
    (git / "refs" / "heads" / "main").write_text("bbbb\n")
    assert read_commit(tmp_path) == "bbbb"
    (git / "HEAD").write_text("dddd\n")
    assert read_commit(tmp_path) == "dddd"


@pytest.mark.usefixtures("processes")
def test_the_commit_of_a_worktree_is_found(tmp_path: Path) -> None:
    for arguments in (
        ("init", "-q", "whole"),
        ("-C", "whole", *_COMMITTER, "commit", "-q", "--allow-empty", "-m", "first"),
        ("-C", "whole", "worktree", "add", "-q", "-b", "other", "../tree"),
        ("-C", "tree", *_COMMITTER, "commit", "-q", "--allow-empty", "-m", "second"),
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "-C", "tree", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True)
    assert read_commit(tmp_path / "tree") == head.stdout.strip() != read_commit(tmp_path / "whole")


@pytest.mark.usefixtures("processes")
def test_uncommitted_changes_of_the_packages_are_named(tmp_path: Path) -> None:
    for package in ("fmfsd", "launcher"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "one.py").write_text("first\n")
    assert list_uncommitted_files(tmp_path) is None
    for arguments in (("init", "-q"), ("add", "."), (*_COMMITTER, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    assert list_uncommitted_files(tmp_path) == []
    (tmp_path / "notes.txt").write_text("not part of the packages\n")
    (tmp_path / "fmfsd" / "one.py").write_text("second\n")
    (tmp_path / "launcher" / "two.py").write_text("new\n")
    assert list_uncommitted_files(tmp_path) == [" M fmfsd/one.py", "?? launcher/two.py"]


def test_a_source_snapshot_knows_the_commit_and_the_uncommitted_files(tmp_path: Path) -> None:
    (tmp_path / COMMIT_FILE).write_text("aaaa\n M fmfsd/one.py\n")
    assert (read_commit(tmp_path), list_uncommitted_files(tmp_path)) == ("aaaa", [" M fmfsd/one.py"])


_COMMITTER = ("-c", "user.name=a", "-c", "user.email=a@b")


def launched_run(data_root: Path, tmp_path: Path, *changes: str) -> RunDir:
    """Return a run of the tiny config with these changes that was launched before."""
    run = RunDir(tmp_path / "run")
    run.create()
    run.config.write_text(dump_config(tiny_config(data_root, *changes)))
    write_json(run.manifest, new_manifest(tiny_config(data_root), new_launch_entry(["fmfsd-launch"])))
    return run


def test_settings_that_do_not_change_a_step_may_change_on_resume(data_root: Path, tmp_path: Path) -> None:
    run = launched_run(data_root, tmp_path)
    assert_no_problems(
        tiny_config(data_root, "train.epochs=9", "checkpoint.every_minutes=1", "train.log_every=2 steps"), run=run
    )


def test_a_run_can_not_be_made_shorter_than_its_current_step(data_root: Path, tmp_path: Path) -> None:
    """A run must not end at its current step either, as the evaluations at the end would be left out."""
    run = launched_run(data_root, tmp_path)
    assert_no_problems(tiny_config(data_root), run=run)
    for steps in (2, 3):
        (run.checkpoints / "step-00000003").mkdir(exist_ok=True)
        code, text = run_failing_checks(tiny_config(data_root, f"train.max_steps={steps}"), run=run)
        assert code == 2
        assert f"train.epochs, train.max_steps: give {steps} steps, and {run.path} has already done 3" in text


def test_a_grace_shorter_than_a_stop_is_a_warning(data_root: Path, tmp_path: Path) -> None:
    """The run has measured the duration of a stop. The same command still resumes it."""
    run = launched_run(data_root, tmp_path)
    write_json(run.rank_progress(0), {"stop_takes_s": 12.3})
    assert list(warn_short_grace(LaunchConfig(grace_s=13), run)) == []
    (message,) = warn_short_grace(LaunchConfig(grace_s=12), run)
    assert message.startswith("--grace 12: a step and a save of this run took 12.3 s")
    assert message.endswith("set --grace 25")
    assert_no_problems(tiny_config(data_root), LaunchConfig(grace_s=12), run=run)


def test_the_check_refuses_a_run_that_another_launch_owns(data_root: Path, tmp_path: Path) -> None:
    run = launched_run(data_root, tmp_path)
    with hold_run_lock(run):
        code, text = run_failing_checks(tiny_config(data_root), run=run)
    assert code == 3
    assert f"in use by another launch (process {os.getpid()} on" in text
    write_json(run.owner, {"host": socket.gethostname(), "pid": os.getpid(), "born": 1, "since": 0.0})
    assert_no_problems(tiny_config(data_root), run=run)


@pytest.mark.fault("F43")
def test_changed_software_versions_are_reported() -> None:
    before = {"versions": {"torch": "2.14.0", "numpy": "2.4.0"}, "commit": "aaaa"}
    now = {"versions": {"torch": "2.15.0", "numpy": "2.4.0"}, "commit": "aaaa"}
    assert find_software_changes(before, now) == ["torch: 2.14.0 -> 2.15.0"]
    assert find_software_changes(now, now) == []
    edited = {**now, "uncommitted": [" M fmfsd/one.py"]}
    assert find_software_changes({**now, "uncommitted": []}, edited) == ["uncommitted: [] -> [' M fmfsd/one.py']"]


@pytest.mark.usefixtures("processes")
@pytest.mark.fault("F34")
def test_a_run_directory_on_a_read_only_disk_is_refused(data_root: Path, tmp_path: Path) -> None:
    """A real read-only mount, in a mount namespace of the test."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    (tmp_path / "runs").mkdir()
    launch = [command("fmfsd-launch"), "smoke", "--set", f"data.root={data_root}", "--set", "data.name=cifar10"]
    mount = f'mount --bind {tmp_path}/runs {tmp_path}/runs && mount -o remount,ro,bind {tmp_path}/runs && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", mount, "sh", *launch, "--run-dir", f"{tmp_path}/runs/one"]
    result = subprocess.run(inside, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    assert f"{tmp_path}/runs: not writable" in result.stderr
