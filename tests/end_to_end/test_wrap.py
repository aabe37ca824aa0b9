"""Runs with --wrap: agents, workers and probes run inside a container with Python at another path."""

import json
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.container import HOST, container_skip_reason, write_container
from tests.helpers.launches import small_arguments
from tests.helpers.processes import run_command

pytestmark = pytest.mark.skipif(bool(container_skip_reason()), reason=container_skip_reason())


def test_two_nodes_of_this_machine_train_inside_a_container(tiny_root: Path, tmp_path: Path) -> None:
    wrap = write_container(tmp_path)
    arguments = (*small_arguments(tiny_root), "--nodes", "2", "--gpus", "1", "--device", "cpu", "--wrap", wrap)
    answer = run_command("fmfsd-launch", *arguments, "--run-dir", "run", cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run = RunDir(tmp_path / "run")
    assert [node["host"] for node in json.loads(run.attempt(1).read_text())["nodes"]] == [HOST, HOST]
    assert json.loads(run.outcome.read_text())["state"] == "finished"
    assert not list(run.path.glob("fmfsd-*")), "the scratch folder was not removed"
