"""Closed standard streams, and terminals without UTF-8 or without a width, cause no error."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.launches import small_arguments
from tests.helpers.processes import command, run_command, wait_until
from tests.helpers.stub_training import stub_training
from tests.helpers.terminals import TMUX, open_terminal


@pytest.fixture(scope="module")
def finished(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return a run of stub workers that was launched with all three standard streams closed."""
    folder = tmp_path_factory.mktemp("streams")
    argv = " ".join(map(repr, (command("fmfsd-launch"), *small_arguments(tiny_root), "--run-dir", str(folder / "run"))))
    env = {**os.environ, **stub_training(folder / "stub").env}
    done = subprocess.run(["bash", "-c", f"exec {argv} <&- >&- 2>&-"], env=env, cwd=folder, timeout=120)
    assert done.returncode == 0
    return RunDir(folder / "run")


@pytest.mark.fault("F56")
def test_a_launch_works_without_standard_streams(finished: RunDir) -> None:
    assert json.loads(finished.outcome.read_text())["state"] == "finished"
    for log in finished.node_logs(0).glob("rank-*.log"):
        assert "Traceback" not in log.read_text()


COMMANDS = {
    "plan": ("fmfsd-launch", "smoke", "--dry-run"),
    "help": ("fmfsd-launch", "--help"),
    "search": ("fmfsd-tune", "--space", "smoke", "--dry-run"),
    "status": ("fmfsd-launch", "status", "RUN"),
    "logs": ("fmfsd-launch", "logs", "RUN"),
    "watch": ("fmfsd", "watch", "RUN", "--once"),
    "diff": ("fmfsd", "diff", "RUN", "RUN"),
    "report": ("fmfsd", "report", "RUN", "--out", "report.html"),
}


def argv_of(name: str, run: RunDir) -> list[str]:
    program, *argv = (str(run.path) if part == "RUN" else part for part in COMMANDS[name])
    return [command(program), *argv]


@pytest.mark.parametrize(
    ("name", "closed"), [("plan", "<&-"), ("status", ">&-"), ("report", "2>&-"), ("diff", "<&- >&- 2>&-")]
)
def test_commands_work_without_standard_streams(name: str, closed: str, finished: RunDir, tmp_path: Path) -> None:
    argv = " ".join(map(repr, argv_of(name, finished)))
    done = subprocess.run(["bash", "-c", f"exec {argv} {closed}"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))


ASCII = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "LC_ALL": "C", "COLUMNS": "20"}
LATIN = {"PYTHONIOENCODING": "latin-1", "COLUMNS": "0"}


@pytest.mark.fault("F56")
@pytest.mark.parametrize("env", [ASCII, LATIN], ids=["ASCII, 20 columns", "Latin-1, 0 columns"])
@pytest.mark.parametrize("name", COMMANDS)
def test_any_encoding_and_terminal_width_work(name: str, env: dict[str, str], finished: RunDir, tmp_path: Path) -> None:
    program, *argv = argv_of(name, finished)
    done = run_command(Path(program).name, *argv, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.skipif(TMUX is None, reason="needs tmux")
@pytest.mark.parametrize("columns", [5])
def test_a_narrow_terminal_does_not_end_the_run(columns: int, tiny_root: Path, tmp_path: Path) -> None:
    stub = stub_training(tmp_path / "stub")
    pythonpath = f"PYTHONPATH={stub.env['PYTHONPATH']}"
    argv = [shutil.which("env") or "env", pythonpath, command("fmfsd-launch"), *small_arguments(tiny_root)]
    with open_terminal(tmp_path, [*map(repr, argv), "--run-dir", "run"], columns=columns) as screen:
        outcome = RunDir(tmp_path / "run").outcome
        wait_until(lambda: outcome.exists() and json.loads(outcome.read_text())["state"] == "finished", "its end")
        wait_until(lambda: "ended with 0" in screen.screen.replace("\n", ""), "its exit code")
