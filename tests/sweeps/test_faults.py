"""Whatever is killed, nothing is left behind, nothing that ended is run again, and the end is the undisturbed one."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from fmfsd.rundir import NOW
from launcher.tune.sweep_dir import SweepDir
from tests.helpers.leaks import TEST_ID
from tests.helpers.processes import wait_until
from tests.helpers.searches import Sweeping, arguments, known, results, sweeping, tune

WORDS = {
    "driver": ("launcher.tune.driver",),
    "raylet": ("/raylet/raylet",),
    "gcs_server": ("/gcs/gcs_server",),
}


def in_the_middle(running: Sweeping) -> None:
    """One trial has ended, another has a checkpoint."""
    running.wait_for(lambda: results(running.sweep), "an end of a trial")
    running.wait_for_trial(3, step=5)


def kill_one(running: Sweeping, *words: str) -> None:
    found = running.wait_for(lambda: running.processes(*words), f"a process {' '.join(words)}")
    found[-1].send_signal(signal.SIGKILL)


def alike(sweep: SweepDir, undisturbed: SweepDir) -> bool:
    return results(sweep) == results(undisturbed) and len(known(sweep, "ended")) == len(known(undisturbed, "ended"))


@pytest.mark.fault("F26", "F27", "F28", "F29")
@pytest.mark.parametrize("victims", [("driver",), ("raylet", "worker"), ("gcs_server",)])
def test_a_search_goes_on_by_itself(
    tiny_root: Path, undisturbed: SweepDir, tmp_path: Path, victims: tuple[str, ...]
) -> None:
    with sweeping(*arguments(tiny_root, tmp_path, "--concurrent", "2"), cwd=tmp_path) as running:
        for victim in victims:
            in_the_middle(running)
            kill_one(running, *WORDS.get(victim, ("fmfsd", "train", "0003")))
        code, output, errors = running.ended()
    assert code == 0, output + errors
    assert alike(running.sweep, undisturbed)


@pytest.mark.fault("F29")
def test_a_killed_sweep_leaves_nothing_and_is_gone_on_with(
    tiny_root: Path, undisturbed: SweepDir, tmp_path: Path
) -> None:
    with sweeping(*arguments(tiny_root, tmp_path, "--concurrent", "2"), cwd=tmp_path) as running:
        in_the_middle(running)
        running.process.kill()
        wait_until(lambda: not ours(str(tmp_path)), "the end of all that the sweep has started")
    with running.sweep.ledger.open("ab") as ledger:
        ledger.write(b'{"fact":"ended","trial":')
    answer = tune("--resume", str(running.sweep.path), cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert alike(running.sweep, undisturbed)
    assert [each["state"] for each in known(running.sweep, "ended")] == ["finished"] * 3


def ours(word: str) -> list[int]:
    """Processes that this test has started and that name its folder."""
    mark = f"{TEST_ID}={os.environ[TEST_ID]}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            if word in " ".join(process.cmdline()) and mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_stopped_sweep_saves_its_trials_and_goes_on_to_the_same_end(
    tiny_root: Path, undisturbed: SweepDir, tmp_path: Path
) -> None:
    with sweeping(*arguments(tiny_root, tmp_path, "--concurrent", "2"), cwd=tmp_path) as running:
        in_the_middle(running)
        running.process.send_signal(signal.SIGTERM)
        code, output, errors = running.ended()
    assert code == 75, output + errors
    assert f"fmfsd-tune --resume {running.sweep.path}" in output
    answer = tune("--resume", str(running.sweep.path), cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert alike(running.sweep, undisturbed)


def test_a_sweep_that_is_cancelled_ends_at_once(tiny_root: Path, tmp_path: Path) -> None:
    changes = ("train.max_steps=null", "train.epochs=100000")
    with sweeping(*arguments(tiny_root, tmp_path, changes=changes), cwd=tmp_path) as running:
        running.wait_for_trial(1, step=1)
        running.sweep.coordination.stop_request.write_text(NOW)
        assert running.ended()[0] == 130


@pytest.mark.fault("F30")
def test_a_damaged_ledger_is_refused(undisturbed: SweepDir, tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "sweep")
    shutil.copytree(undisturbed.path, sweep.path)
    lines = sweep.ledger.read_bytes().splitlines(keepends=True)
    sweep.ledger.write_bytes(b"".join([lines[0], b"{\n", *lines[2:]]))
    answer = tune("--resume", str(sweep.path), cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (
        3,
        f"{sweep.ledger}:2: is no fact: put it back, or take the line out\n",
    )
