"""Displays of a launch and of `fmfsd watch` on a real terminal, for a real run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.processes import command, run_command
from tests.helpers.terminals import TMUX, open_terminal

pytestmark = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")

FREQUENT_EVALUATION = ("--set", "train.evaluate_every=5 steps")


@pytest.fixture
def launch(arguments: tuple[str, ...]) -> list[str]:
    argv = (command("fmfsd-launch"), *arguments, *FREQUENT_EVALUATION, "--run-dir", "run", "--device", "cpu")
    return [shlex.quote(part) for part in argv]


def test_the_launch_and_fmfsd_watch_show_the_run_and_its_end(launch: list[str], tmp_path: Path) -> None:
    with open_terminal(tmp_path, launch) as one:
        screen = one.wait_for("images/s", "data wait", "test: branch1", "loss_label", "loss_soft_target")
        bar = next(row for row in screen.splitlines() if "images/s" in row)
        assert "/960" in bar
        with open_terminal(tmp_path, [command("fmfsd"), "watch", "run"]) as other:
            watched = other.wait_for("running, epoch", "rank", "heartbeat", "deepest")
            assert re.findall(r"(?m)^ *(\d+) +\S+ +(?:train|evaluate|save) ", watched) == ["0", "1"]
            once = run_command("fmfsd", "watch", "run", "--once", "--json", cwd=tmp_path)
            assert json.loads(once.stdout)["state"] == "running"
            one.tmux("send-keys", "C-c")
            one.wait_for("ended with 75")
            other.wait_for("stopped", "ended with 0")


def test_ctrl_c_in_fmfsd_watch_ends_only_the_watching(launch: list[str], tmp_path: Path) -> None:
    with open_terminal(tmp_path, launch, columns=60) as one:
        one.wait_for("step", "images/s", "loss_label")
        with open_terminal(tmp_path, [command("fmfsd"), "watch", "run"], columns=60) as other:
            other.wait_for("running")
            other.tmux("send-keys", "C-c")
            other.wait_for("ended with 0")
        before = json.loads(run_command("fmfsd", "watch", "run", "--once", "--json", cwd=tmp_path).stdout)
        assert before["state"] == "running"
        one.tmux("send-keys", "C-c")
        one.wait_for("ended with 75")
