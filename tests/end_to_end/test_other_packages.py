"""A user's modules with the names of ours do not break any command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fmfsd.own_launcher import COMMAND
from launcher.transport.agent_client import AGENT_COMMAND
from tests.helpers.processes import run_command
from tests.helpers.stub_training import hide_launcher


@pytest.fixture(params=["module", "package"])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Return a PYTHONPATH that contains another `launcher`."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    hide_launcher(folder)
    if request.param == "package":
        (folder / "launcher").mkdir()
        (folder / "launcher.py").rename(folder / "launcher" / "__init__.py")
    hidden = subprocess.run(
        [sys.executable, "-P", "-c", "import launcher"], env={"PYTHONPATH": str(folder)}, check=False
    )
    assert hidden.returncode == 1
    return {"PYTHONPATH": str(folder)}


@pytest.mark.fault("F54")
def test_plans_are_made_by_our_launcher_package(env: dict[str, str], tmp_path: Path) -> None:
    planned = run_command("fmfsd-launch", "smoke", "--dry-run", "--json", cwd=tmp_path, env=env)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["nodes"]
    searched = run_command("fmfsd-tune", "--space", "smoke", "--dry-run", cwd=tmp_path, env=env)
    assert searched.returncode == 0, searched.stderr


@pytest.mark.fault("F54")
def test_agents_come_from_our_launcher_package(env: dict[str, str], tmp_path: Path) -> None:
    agent = subprocess.run(AGENT_COMMAND, input="", capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)
    assert json.loads(agent.stdout.splitlines()[0])["event"] == "ready", agent.stderr


def test_a_traceback_shows_the_file_of_a_module_run_by_name(env: dict[str, str], tmp_path: Path) -> None:
    broken = [*COMMAND, "launcher.tune.driver.driver", str(tmp_path / "no sweep"), "1", "scratch"]
    done = subprocess.run(broken, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert "launcher/tune/driver/driver.py" in done.stderr
