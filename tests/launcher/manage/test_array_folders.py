"""stop, logs and resume with the folder of a job array's runs, without Slurm."""

import io
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fmfsd.errors import CheckError
from fmfsd.run.run_dir import STOP_NOW, RunDir
from fmfsd.system.atomic_files import write_json
from launcher.config.launch_config import LaunchConfig, SlurmOptions, launch_to_dict
from launcher.launch_request import LaunchRequest
from launcher.manage import resume as resume_module
from launcher.manage.logs import show_logs
from launcher.manage.resume import resume
from launcher.manage.stop import request_cancel, request_stop
from launcher.run_dir.activity import find_runs
from launcher.run_dir.run_lock import Owner

LAUNCH = LaunchConfig(on="slurm", device="cpu", gpus=1)


@pytest.fixture
def array(tmp_path: Path) -> list[RunDir]:
    """Return runs of the seeds 1, 2 and 10, none of which is running."""
    runs = [RunDir(tmp_path / "array" / f"seed-{seed}") for seed in (1, 2, 10)]
    for run in runs:
        run.create()
        run.config.write_text("")
        write_json(run.launch, launch_to_dict(LAUNCH))
    return runs


def mark_running(run: RunDir) -> None:
    write_json(run.owner, asdict(Owner.current()))


def resume_requests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[LaunchRequest]:
    requests = list[LaunchRequest]()

    def launch(request: LaunchRequest, **_: object) -> int:
        requests.append(request)
        return 0

    monkeypatch.setattr(resume_module, "launch_run", launch)
    assert resume(folder, wait=False, as_json=False, environment={}, cwd="/", argv=["fmfsd-launch"]) == 0
    return requests


def test_runs_of_an_array_are_sorted_by_seed(array: list[RunDir], tmp_path: Path) -> None:
    assert list(find_runs(tmp_path / "array")) == array
    assert find_runs(array[0].path) == (array[0],)
    with pytest.raises(CheckError, match="neither a run directory nor a folder of an array's runs"):
        find_runs(tmp_path)


def test_all_running_runs_of_an_array_are_stopped(array: list[RunDir], tmp_path: Path) -> None:
    for run in array[1:]:
        mark_running(run)
    lines = request_stop(tmp_path / "array", wait=False).splitlines()
    assert [line.split(": process")[0] for line in lines] == ["seed-2: requested to stop", "seed-10: requested to stop"]
    assert [run.stop_request.exists() for run in array] == [False, True, True]
    request_cancel(tmp_path / "array", wait=False)
    assert array[1].stop_request.read_text() == STOP_NOW


def test_stopping_an_array_without_a_running_run_names_each_run(array: list[RunDir], tmp_path: Path) -> None:
    with pytest.raises(CheckError) as raised:
        request_stop(tmp_path / "array", wait=False)
    assert [problem.where for problem in raised.value.problems] == [str(run.path) for run in array]


def test_logs_of_an_array_name_the_run_of_each_line(array: list[RunDir], tmp_path: Path) -> None:
    for run in array:
        (run.logs / "node-0").mkdir()
        (run.logs / "node-0" / "rank-0.log").write_text(f"hello from {run.path.name}\n")
    out = io.StringIO()
    show_logs(tmp_path / "array", out, rank=None, lines=5)
    assert out.getvalue().splitlines() == [
        f"{run.path.name} [node 0 rank 0] hello from {run.path.name}" for run in array
    ]


def test_an_array_is_resumed_as_one_array_of_the_runs_that_are_neither_finished_nor_running(
    array: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(array[0].outcome, {"state": "finished", "attempt": 1})
    write_json(array[1].launch, launch_to_dict(replace(LAUNCH, grace_s=120.0)))  # its job has run
    (request,) = resume_requests(tmp_path / "array", monkeypatch)
    assert (request.launch.run_dir, request.launch.slurm.array) == (tmp_path / "array", "2,10")
    mark_running(array[1])
    (request,) = resume_requests(tmp_path / "array", monkeypatch)
    assert request.launch.slurm.array == "10"
    assert capsys.readouterr().err == "seed-2: already running, so it is not resumed\n"


@pytest.mark.parametrize("other", [replace(LAUNCH, nodes=2), replace(LAUNCH, slurm=SlurmOptions(time="9"))])
def test_runs_that_were_launched_differently_are_resumed_one_by_one(
    other: LaunchConfig, array: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(array[2].launch, launch_to_dict(other))
    requests = resume_requests(tmp_path / "array", monkeypatch)
    assert [request.launch.run_dir for request in requests] == [run.path for run in array]


def test_a_finished_or_running_array_is_not_resumed(
    array: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in array:
        mark_running(run)
    with pytest.raises(CheckError, match="every unfinished run is already running"):
        resume_requests(tmp_path / "array", monkeypatch)
    for run in array:
        write_json(run.outcome, {"state": "finished", "attempt": 1})
    assert resume_requests(tmp_path / "array", monkeypatch) == []
    assert "this run is finished; nothing to do" in capsys.readouterr().out
