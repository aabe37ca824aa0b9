"""Preflight: before a run, workers check their arithmetic and their collectives, and measure their speed."""

import logging
import math
import re
import shutil
import socket
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fmfsd.distributed import preflight
from fmfsd.distributed.collectives import Comms, SingleWorkerComms
from fmfsd.distributed.preflight import (
    WorkerMeasurement,
    find_slow_workers,
    format_measurements,
    make_operands,
    measure_workers,
    run_preflight,
)
from fmfsd.distributed.world import World
from fmfsd.errors import DataError, PreflightError, RunFailedError
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from fmfsd.training.attempt_fence import AttemptFence
from fmfsd.training.trainer import train
from fmfsd.worker import WorkerSettings, write_crash_report
from tests.helpers.processes import run_command
from tests.helpers.runs import make_run, tiny_config
from tests.helpers.workers import run_workers

CPU = torch.device("cpu")
HERE = socket.gethostname()


def logged_preflight(comms: Comms, product: Any = None) -> tuple[str, list[str], str]:
    """Return log, warnings and error of this worker; rank 2 computes matrix products by `product`."""
    if product is not None and comms.rank == 2:
        preflight.multiply = product
    lines, warnings = Lines(), list[str]()
    preflight.log.setLevel(logging.INFO)
    preflight.log.addHandler(lines)
    try:
        run_preflight(comms, World(comms.rank, comms.size, node=comms.rank // 2), CPU, warn=warnings.append)
    except PreflightError as error:
        return lines.text, warnings, str(error)
    return lines.text, warnings, ""


class Lines(logging.Handler):
    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


def test_rank_0_logs_the_measurements() -> None:
    (line, _, _), *others = run_workers(logged_preflight, 3)
    number = r"\d+(\.\d+)?(e-\d+)?"
    assert re.match(
        rf"preflight: 3 workers, all-reduce of 4 MiB {number} GB/s, latency {number} ms, "
        rf"product {number} GFLOP/s \(slowest: rank \d, node [01], host {re.escape(HERE)}: {number}\)\n",
        line,
    )
    assert [log for log, _, _ in others] == ["", ""]


def measure_speed(comms: Comms) -> list[WorkerMeasurement]:
    return measure_workers(comms, World(comms.rank, comms.size), CPU)


def test_all_workers_know_the_measurements_of_each() -> None:
    """The values are plausible: a core makes 10 MFLOP/s to 10 TFLOP/s, and no loopback device moves 1 TB/s."""
    one, other = run_workers(measure_speed, 2)
    assert one == other
    assert [(each.rank, each.host, each.error) for each in one] == [(0, HERE, ""), (1, HERE, "")]
    assert all(1e7 < each.flops_per_s < 1e13 for each in one)
    assert all(4e-6 < each.message_s < 60 and 1e-7 < each.latency_s < 60 for each in one)


def with_one_bit_wrong(left: Tensor, right: Tensor) -> Tensor:
    product = left @ right
    product.view(torch.int32)[3, 5] ^= 1
    return product


def with_nan(left: Tensor, right: Tensor) -> Tensor:
    product = left @ right
    product[1] = math.nan
    return product


@pytest.mark.parametrize(("product", "places"), [(with_one_bit_wrong, 1), (with_nan, 512)])
def test_all_workers_report_the_worker_with_a_wrong_product(product: Any, places: int) -> None:
    errors = {error for _, _, error in run_workers(logged_preflight, 3, product)}
    what = f"a matrix product has {places} wrong elements of 262144"
    where = f"rank 2, node 1, host {HERE}"
    assert errors == {f"preflight: {where}: {what}. Exclude this node until its hardware is checked"}


def multiply_slowly(left: Tensor, right: Tensor) -> Tensor:
    time.sleep(0.1)
    return left @ right


def test_the_user_is_warned_of_a_worker_that_multiplies_slowly() -> None:
    (line, warnings, error), *others = run_workers(logged_preflight, 3, multiply_slowly)
    assert error == ""
    assert "(slowest: rank 2, node 1" in line
    (warning,) = (text for text in warnings if text.startswith(f"rank 2, node 1, host {HERE} is slow: "))
    assert f"{warning}\n" in line
    assert [warnings for _, warnings, _ in others] == [[], []]


def test_a_worker_is_slow_relative_to_the_median() -> None:
    one = WorkerMeasurement(0, 0, "a", "", 3e11, 4e-4, 3e-5)
    rates = (3.1e11, 3.0e11, 1.6e11, 1.4e11)
    measurements = [replace(one, rank=rank, flops_per_s=rate) for rank, rate in enumerate(rates)]
    assert find_slow_workers(measurements[:3]) == []
    measurements.append(replace(one, rank=4))
    assert find_slow_workers(measurements) == [
        "rank 3, node 0, host a is slow: 140 GFLOP/s, median 300: all other workers will wait for it"
    ]
    assert format_measurements(measurements) == (
        "5 workers, all-reduce of 4 MiB 10 GB/s, latency 0.03 ms, "
        "product 300 GFLOP/s (slowest: rank 3, node 0, host a: 140)"
    )
    assert format_measurements([one]) == "1 worker, product 300 GFLOP/s"


@pytest.mark.parametrize("side", [64, 512])
def test_the_expected_product_is_exact(side: int) -> None:
    left, right, product = make_operands(side, CPU)
    assert torch.equal((left.long() @ right.long()).float(), product)
    assert len(product.unique()) > side


def skip_the_collective(comms: Comms, joins: bool) -> tuple[str, float]:
    """Rank 1 skips the all-reduce, after joining the process group (if `joins`) or before; rank 0 must time out."""
    preflight.DEADLINE_S = 1.0
    start, message = time.monotonic(), ""
    with comms.with_timeout(preflight.DEADLINE_S) if joins and comms.rank == 1 else nullcontext():
        if comms.rank == 0:
            try:
                measure_workers(comms, World(0, 2), CPU)
            except RunFailedError as error:
                message = str(error)
        took_s = time.monotonic() - start
        comms.any(False)
    return message, took_s


@pytest.mark.parametrize("joins", [True, False])
def test_a_worker_that_skips_the_all_reduce_is_waited_for_only_until_the_deadline(joins: bool) -> None:
    (message, took_s), _ = run_workers(skip_the_collective, 2, joins)
    assert message.startswith("preflight: rank 0 could not complete an all-reduce within 1 s")
    assert 1 <= took_s < 30


def test_a_preflight_error_starts_no_new_attempt_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    write_crash_report(run, World(), 1, PreflightError("wrong"))
    crash = read_json(run.crash_report(1, 0))
    assert (crash["worth_another_attempt"], crash["resumable"], crash["expected"]) == (False, True, True)


def train_alone(run: RunDir, *, preflight: bool) -> None:
    with HeartbeatFile(run.rank_progress(0), rank=0) as progress:
        train(run, World(), CPU, progress, AttemptFence(run, 1), timeout_s=60, preflight=preflight)


def test_the_preflight_runs_before_data_is_loaded_if_it_is_requested(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the index of the data set exists, so loading the first image fails."""
    (tmp_path / "cifar10").mkdir()
    shutil.copy(tiny_root / "cifar10" / "index.json", tmp_path / "cifar10")
    run = make_run(tmp_path / "run", tiny_config(tmp_path))
    monkeypatch.setattr(preflight, "multiply", with_nan)
    with pytest.raises(PreflightError):
        train_alone(run, preflight=True)
    with pytest.raises(DataError):
        train_alone(run, preflight=False)


def test_the_progress_file_warns_the_user_of_a_slow_worker(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        preflight, "find_slow_workers", lambda measurements: [f"rank {each.rank} is slow" for each in measurements]
    )
    run = make_run(tmp_path / "run", tiny_config(tiny_root, "train.max_steps=1"))
    train_alone(run, preflight=True)
    assert read_json(run.rank_progress(0))["warnings"] == ["rank 0 is slow"]


def test_an_environment_variable_requests_the_preflight(tiny_root: Path, tmp_path: Path) -> None:
    assert not WorkerSettings.from_environment({}).preflight
    run = make_run(tmp_path / "run", tiny_config(tiny_root, "train.max_steps=1"))
    arguments = ("train", str(run.path), "--device", "cpu")
    worker = run_command("fmfsd", *arguments, cwd=tmp_path, env={"FMFSD_PREFLIGHT": "1"})
    assert worker.returncode == 0, worker.stderr
    assert re.search(r"INFO preflight: 1 worker, product \S+ GFLOP/s\n(.*\n)*.*started after step 0", worker.stderr)


def test_a_single_worker_measures_no_collectives(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run_preflight(SingleWorkerComms(), World(), CPU, warn=pytest.fail)
    assert re.search(r"preflight: 1 worker, product \S+ GFLOP/s$", caplog.text)
