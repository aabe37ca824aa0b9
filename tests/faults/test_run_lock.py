"""Run lock: one launch at a time; a second one names the first, and the lock of a killed launch is free."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from fmfsd.system.file_locks import LOCK_VARIABLE, choose_lock_method
from launcher.run_dir.run_lock import Owner, hold_run_lock
from tests.helpers.processes import run_command

RACING, ROUNDS, DEADLINE_S = 16, 25, 60.0
_context = get_context("forkserver")


def race(folders: list[Path], barrier: Barrier, method: str) -> None:
    """Try to lock the run of each folder, all processes at the same time; write "won" or the error into the folder."""
    choose_lock_method({LOCK_VARIABLE: method})
    for folder in folders:
        answer = folder / f"answer-{os.getpid()}"
        barrier.wait(DEADLINE_S)
        try:
            with hold_run_lock(RunDir(folder / "run")):
                answer.write_text("won")
                barrier.wait(DEADLINE_S)
        except CheckError as error:
            answer.write_text(str(error))
            barrier.wait(DEADLINE_S)


@pytest.mark.fault("F33")
@pytest.mark.parametrize("method", ["flock", "file"])
def test_of_sixteen_simultaneous_launches_one_gets_the_lock_and_the_others_name_it(method: str, tmp_path: Path) -> None:
    """Also for runs that another launch has owned before."""
    folders, barrier = [tmp_path / f"{number}" for number in range(ROUNDS)], _context.Barrier(RACING)
    for folder in folders:
        (folder / "run").mkdir(parents=True)
    for folder in folders[1::2]:
        write_json(RunDir(folder / "run").owner, asdict(replace(Owner.current(), born=1)))
    racers = [_context.Process(target=race, args=(folders, barrier, method)) for _ in range(RACING)]
    for racer in racers:
        racer.start()
    for racer in racers:
        end(racer)
    for folder in folders:
        answers = {path.name.removeprefix("answer-"): path.read_text() for path in folder.glob("answer-*")}
        (winner,) = (pid for pid, text in answers.items() if text == "won")
        others = [text for pid, text in answers.items() if pid != winner]
        assert len(others) == RACING - 1
        assert all(f"in use by another launch (process {winner} on " in text for text in others), others


def end(process: BaseProcess) -> None:
    process.join(DEADLINE_S)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def hold(folder: Path, held: Event) -> None:
    with hold_run_lock(RunDir(folder)):
        held.set()
        signal.pause()


@contextmanager
def owned(folder: Path) -> Iterator[int]:
    """Lock the run by a process, yield its pid, and kill it at the end."""
    held = _context.Event()
    process = _context.Process(target=hold, args=(folder, held))
    process.start()
    try:
        assert held.wait(DEADLINE_S)
        assert process.pid is not None
        yield process.pid
    finally:
        process.kill()
        end(process)


@pytest.mark.fault("F33")
def test_the_lock_of_a_killed_launch_is_taken_over_immediately(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with owned(run.path) as pid, pytest.raises(CheckError, match=rf"\(process {pid} on "), hold_run_lock(run):
        pass
    left = Owner.of_run(run)
    assert left is not None
    assert (left.pid, left.is_alive) == (pid, False)
    with hold_run_lock(run):
        assert Owner.of_run(run) != left


@pytest.mark.fault("F33")
def test_a_check_reports_a_live_lock_owner_but_not_a_dead_one(tiny_root: Path, tmp_path: Path) -> None:
    from tests.helpers.launches import tiny_arguments  # imports torch, which the processes above would import as well

    check = ("fmfsd-launch", *tiny_arguments(tiny_root, workers=(1,)), "--check", "--gpus", "1", "--run-dir", "run")
    with owned(tmp_path / "run") as pid:
        refused = run_command(*check, cwd=tmp_path)
    assert refused.returncode == 3
    assert f"in use by another launch (process {pid} on " in refused.stderr
    assert run_command(*check, cwd=tmp_path).returncode == 0
