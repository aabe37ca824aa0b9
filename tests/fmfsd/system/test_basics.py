"""Basic parts: world, files, run directory, metrics, schedule, stop flag."""

import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import typer

import fmfsd
from fmfsd.cli import train
from fmfsd.distributed.world import World
from fmfsd.errors import CheckError, ConfigError, DataError, Problem, RunFailedError
from fmfsd.optim import learning_rate
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.metrics import MetricsLog, RunningMeans, read_last_records
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_atomic, write_json
from fmfsd.training.stop_flag import StopFlag
from fmfsd.training.timers import StepTimer
from fmfsd.worker import is_fmfsd_bug
from tests.helpers.processes import wait_until

HERE = {"MASTER_ADDR": "127.0.0.1"}
TORCHRUN = {**HERE, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}


DEEPSPEED = {
    **HERE,
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
}


def test_a_world_is_read_from_the_variables_of_torchrun_deepspeed_srun_or_the_user() -> None:
    assert World.from_environment({}) == World()
    assert World.from_environment(TORCHRUN) == World(rank=3, size=4, local_rank=1, local_size=2, node=1)
    assert World.from_environment(DEEPSPEED) == World.from_environment(TORCHRUN)
    assert World.from_environment({**DEEPSPEED, **TORCHRUN, "GROUP_RANK": "0"}).node == 0
    assert World.from_environment({**HERE, "RANK": "0", "WORLD_SIZE": "2"}) == World(size=2, local_size=0)
    shell = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
    assert World.from_environment(shell) == World()
    srun = {**HERE, **shell, "SLURM_STEP_ID": "0"}
    assert World.from_environment(srun) == World(rank=1, size=2, local_size=0, node=1)
    assert World.from_environment({**srun, "SLURM_NTASKS_PER_NODE": "1"}).local_size == 1
    assert World.from_environment({**srun, **TORCHRUN}).rank == 3
    assert World.from_environment({**TORCHRUN, "FMFSD_INIT_METHOD": "file:///x"}).init_method == "file:///x"


@pytest.mark.parametrize("step", [4294967290, 4294967291, 4294967292, 4294967293])
def test_a_shell_of_salloc_has_a_world_of_size_1(step: int) -> None:
    """These are Slurm's ids of interactive, batch, extern and pending steps."""
    task = {"SLURM_STEP_ID": str(step), "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert World.from_environment(task) == World()


@pytest.mark.fault("F50")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, "RANK=0, WORLD_SIZE=4: several workers, but MASTER_ADDR"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "unset SLURM_PROCID and SLURM_NTASKS"),
    ],
)
def test_incomplete_variables_of_another_launcher_are_named(environment: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        World.from_environment(environment)
    assert World.from_environment({**environment, "FMFSD_INIT_METHOD": "file:///x"}).size > 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"WORLD_SIZE": ""}, "environment variable WORLD_SIZE: expected a whole number, found ''"),
        ({"RANK": "-1"}, "environment variable RANK: expected a whole number, found '-1'"),
        ({"RANK": "4"}, "rank 4 of 4 workers does not exist"),
    ],
)
def test_an_inconsistent_world_is_an_error(change: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        World.from_environment({**TORCHRUN, **change})


def test_a_worker_sees_the_gpus_of_its_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's launcher sets CUDA_VISIBLE_DEVICES to the first GPUs of the machine."""
    visible: list[str] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("FMFSD_VISIBLE_GPUS", "2,3")
    monkeypatch.setattr("fmfsd.worker.run_worker", lambda *_: visible.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    with pytest.raises(typer.Exit):
        train(Path("run"))
    assert visible == ["2,3"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_files_are_private_to_the_user(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        write_atomic(tmp_path / "file", "x")
        RunDir(tmp_path / "run").create()
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").iterdir()} == {0o700}


def test_json_that_is_not_an_object_is_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1})
    assert read_json(tmp_path / "a") == {"x": 1}
    (tmp_path / "b").write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object, found list"):
        read_json(tmp_path / "b")


def test_a_new_run_has_a_unique_name(tmp_path: Path) -> None:
    run = RunDir.new(tmp_path, "smoke")
    assert re.fullmatch(r"smoke-20\d{6}-\d{6}-[0-9a-f]{4}", run.path.name)
    assert not run.path.exists()


def test_a_run_folder_is_unused_until_it_contains_results(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.is_unused()
    run.create()
    for path in (run.manifest, run.launch, run.lock):
        path.write_text("{}")
    assert run.is_unused()
    (run.checkpoints / "step-00000001").mkdir()
    assert not run.is_unused()
    assert not RunDir(run.manifest).is_unused()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert not RunDir(tmp_path / "other").is_unused()


def test_attempts_are_counted(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    assert run.last_attempt() == 0
    for number in (1, 2, 10):
        write_json(run.attempt(number), {})
        write_json(run.crash_report(number, 3), {})
    assert run.last_attempt() == 10
    assert [path.name for path in run.crash_reports(10)] == ["0010-rank-3.json"]


def test_errors_have_exit_codes_and_list_every_problem() -> None:
    error = DataError([Problem("a.yaml:3", "wrong"), Problem("", "without a location")])
    assert isinstance(error, CheckError)
    assert error.exit_code == 3
    assert ConfigError("x").exit_code == 2
    assert str(error) == "a.yaml:3: wrong\nwithout a location"


def test_the_learning_rate_drops_after_each_milestone() -> None:
    rates = [learning_rate(step, base=0.1, gamma=0.1, milestones=(2, 4)) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_learning_rate_grows_to_its_base_value_in_the_warm_up() -> None:
    rates = [learning_rate(step, base=0.8, gamma=0.5, milestones=(5,), warmup_steps=4) for step in range(7)]
    assert rates == [0.2, 0.4, 0.8 * 0.75, 0.8, 0.8, 0.4, 0.4]


def test_means_are_over_the_values_added_since_the_last_take() -> None:
    means = RunningMeans()
    means.add(loss=1.0, top=0.5)
    means.add(loss=2.0, top=1.5)
    restored = RunningMeans(**json.loads(json.dumps(means.state())))
    assert means.pop() == restored.pop() == {"loss": 1.5, "top": 1.0}
    assert means.pop() == {}
    means.add(loss=4.0)
    assert means.pop() == {"loss": 4.0}


def test_records_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", time.time())
    log.truncate(0)
    for step in (1, 2, 3):
        log.write(step=step, epoch=1, split="train", loss=step / 3)
    assert log.records == 3
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"half a rec')
    resumed = MetricsLog(tmp_path / "metrics.jsonl", time.time())
    resumed.truncate(2)
    resumed.write(step=3, epoch=1, split="test", loss=0.5)
    resumed.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [(1, "train"), (2, "train"), (3, "test")]
    assert read_last_records(tmp_path / "metrics.jsonl") == {"train": {"loss": 2 / 3}, "test": {"loss": 0.5}}


def test_records_of_a_worker_of_an_ended_attempt_are_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    old, new = MetricsLog(path, time.time()), MetricsLog(path, time.time())
    old.truncate(0)
    old.write(step=1, epoch=1, split="train", loss=1.0)
    new.truncate(1)
    old.write(step=2, epoch=1, split="train", loss=9.0)
    new.write(step=2, epoch=1, split="train", loss=2.0)
    old.close()
    new.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0]


def test_a_record_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", time.time())
    log.truncate(0)
    log._descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(RunFailedError, match=r"metrics\.jsonl can't be written: .*No space left"):
        log.write(step=1, epoch=1, split="train")
    log.close()


def test_other_ranks_count_records_but_do_not_write_them(tmp_path: Path) -> None:
    log = MetricsLog(None, time.time())
    log.truncate(4)
    log.write(step=1, epoch=1, split="train")
    assert log.records == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_requests_a_stop_and_the_handler_is_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopFlag(None) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_stop_request_is_a_file(tmp_path: Path) -> None:
    stop = StopFlag(tmp_path / "stop-request")
    assert not stop.requested
    (tmp_path / "stop-request").touch()
    deadline = time.monotonic() + 5
    while not stop.requested and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stop.requested


def test_progress_is_written_at_every_change_of_state_and_by_the_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmfsd.run.heartbeat.HEARTBEAT_INTERVAL_S", 0.01)
    progress = HeartbeatFile(tmp_path / "rank-0.json", rank=0)
    for state, step in (("setup", 0), ("train", 1), ("train", 2)):
        progress.update(state, step=step)
    content = read_json(tmp_path / "rank-0.json")
    assert (content["state"], content["step"], content["rank"], content["pid"]) == ("train", 1, 0, os.getpid())
    assert content["peak_memory_bytes"] > 1 << 20
    progress.count_collectives = lambda: (10, True)
    with progress:
        wait_until(lambda: read_json(tmp_path / "rank-0.json")["beat"] > 3, "heartbeat")
        content = read_json(tmp_path / "rank-0.json")
        assert (content["step"], content["moves"], content["waiting"]) == (2, 13, True)
        progress.warn("a disk is full")
    assert read_json(tmp_path / "rank-0.json")["warnings"] == ["a disk is full"]


def test_the_step_timer_separates_waiting_from_computing() -> None:
    watch = StepTimer()
    with watch.step(128), watch.waiting():
        time.sleep(0.02)
    rates = watch.pop()
    assert rates["data_wait"] == pytest.approx(1, abs=0.1)
    assert 1000 < rates["images_per_s"] < 6400
    assert watch.peek() == {"images_per_s": 0.0, "data_wait": 0.0}


def test_public_names_exist_and_others_do_not() -> None:
    assert fmfsd.fuse.__name__ == "fuse"
    assert fmfsd.__version__
    assert all(hasattr(fmfsd, name) for name in fmfsd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fmfsd.nonsense


def _raised_error(action: Callable[[], object]) -> BaseException:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("no exception was raised")


def test_only_an_error_raised_in_our_own_code_counts_as_a_bug() -> None:
    """Not an invalid value that torch rejects, nor an error of the machine that passes through our code."""
    assert is_fmfsd_bug(_raised_error(lambda: World.from_environment(cast(Any, None))))
    assert not is_fmfsd_bug(_raised_error(lambda: list[int]()[1]))  # raised in the tests
    assert not is_fmfsd_bug(_raised_error(lambda: read_json(Path("/nowhere"))))
