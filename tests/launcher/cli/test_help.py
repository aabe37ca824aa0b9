"""The help of every command at 80 columns, short options, the version, and shell completion."""

import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fmfsd.cli
import launcher.cli.diagnostic_commands
import launcher.cli.launch_command
import launcher.cli.manage_commands
import launcher.cli.tune_command
from fmfsd.typer_app import App
from launcher.cli.diagnostic_commands import DIAGNOSE_COMMANDS
from launcher.cli.launch_command import first_argument
from launcher.cli.manage_commands import MANAGE_COMMANDS
from tests.helpers.processes import run_command

PANELS = {
    launcher.cli.launch_command.app: ["What", "Where", "How", "Before starting", "Slurm", "Output"],
    launcher.cli.tune_command.app: ["What", "Search", "Where", "How", "Before starting", "Output"],
}


def help_lines(app: App, *command: str) -> list[str]:
    result = CliRunner().invoke(app, [*command, "-h"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("app", PANELS, ids=["launch", "tune"])
def test_options_are_grouped_in_panels(app: App) -> None:
    lines = help_lines(app)
    titles = [line.split("─ ")[1].split(" ─")[0] for line in lines if line.startswith("╭─ ")]
    assert titles == ["Arguments", *PANELS[app]]


@pytest.mark.parametrize(
    ("app", "command"),
    [
        (launcher.cli.launch_command.app, ()),
        (launcher.cli.tune_command.app, ()),
        *((launcher.cli.manage_commands.manage_app, (word,)) for word in MANAGE_COMMANDS),
        *((launcher.cli.diagnostic_commands.diagnose_app, (word,)) for word in DIAGNOSE_COMMANDS),
        *((fmfsd.cli.app, (word,)) for word in ("train", "probe", "evaluate", "export", "report", "watch", "diff")),
        (fmfsd.cli.app, ("data", "prepare")),
    ],
)
def test_no_option_is_cut_off_and_no_flag_has_a_type(app: App, command: tuple[str, ...]) -> None:
    lines = help_lines(app, *command)
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line or "<bool>" in line]


def test_short_options_are_those_of_slurm_and_torchrun() -> None:
    lines = help_lines(launcher.cli.launch_command.app)
    for short, long in {"-N": "--nodes", "-p": "--partition", "-A": "--account", "-t": "--time"}.items():
        assert any(short in line and long in line for line in lines)


def test_the_version_is_that_of_the_package() -> None:
    for app in (launcher.cli.launch_command.app, launcher.cli.tune_command.app, fmfsd.cli.app):
        result = CliRunner().invoke(app, ["--version"])
        assert (result.exit_code, result.stdout) == (0, f"fmfsd {version('fmfsd')}\n")


def test_the_command_is_also_recognized_during_shell_completion() -> None:
    assert first_argument(["fmfsd-launch", "stop", "RUN"], {}) == "stop"
    assert first_argument(["fmfsd-launch"], {}) == ""
    assert first_argument(["fmfsd-launch"], {"_TYPER_COMPLETE_ARGS": "fmfsd-launch logs --fo"}) == "logs"


@pytest.mark.usefixtures("processes")
def test_a_shell_completes_presets_commands_and_options(tmp_path: Path) -> None:
    def completions(line: str) -> list[str]:
        env = {"_FMFSD_LAUNCH_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
        result = run_command("fmfsd-launch", cwd=tmp_path, env=env)
        return re.findall(r"[\w-]+", result.stdout)

    assert "cifar100-resnet18" in completions("fmfsd-launch cifar100")
    assert "stop" in completions("fmfsd-launch st")
    assert "--elastic" in completions("fmfsd-launch smoke --el")
    assert "--follow" in completions("fmfsd-launch logs --fo")


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_accepts_the_completion_script(tmp_path: Path) -> None:
    env = {"_FMFSD_LAUNCH_COMPLETE": "source_bash"}
    script = run_command("fmfsd-launch", cwd=tmp_path, env=env).stdout
    assert "complete" in script
    syntax = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (syntax.returncode, syntax.stderr) == (0, "")
