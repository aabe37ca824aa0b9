"""Ctrl-C and SIGTERM at any moment of any command: no traceback, and a documented exit code."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from fmfsd.entry_points import INTERRUPTED, TERMINATED
from tests.helpers.processes import command, run_command

SITE = """\
import os, signal, sys

class At:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
        return None

sys.meta_path.insert(0, At())
"""
"""Content of `sitecustomize.py`, which every Python process imports first: sends a signal at the import of `module`."""

MOMENTS = [
    ("fmfsd-launch smoke --dry-run", "launcher.cli.launch_command"),
    ("fmfsd-launch smoke --dry-run", "typer"),
    ("fmfsd-launch smoke --dry-run", "fmfsd.config"),
    ("fmfsd-launch smoke --check", "launcher.launch"),
    ("fmfsd-launch smoke --check", "launcher.check.run_checks"),
    ("fmfsd-launch stop nowhere", "launcher.manage.stop"),
    ("fmfsd-launch logs nowhere", "launcher.manage.logs"),
    ("fmfsd-tune --space smoke --dry-run", "launcher.cli.tune_command"),
    ("fmfsd-tune --space smoke --dry-run", "launcher.tune.run_sweep"),
]


def interrupted_at(module: str, number: signal.Signals, scratch: Path) -> dict[str, str]:
    (scratch / "sitecustomize.py").write_text(SITE.format(module=module, number=int(number)))
    return {"PYTHONPATH": str(scratch)}


@pytest.mark.fault("F53")
@pytest.mark.parametrize(("line", "module"), MOMENTS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_while_a_command_starts_ends_it_quietly(
    line: str, module: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    name, *arguments = line.split()
    ended = run_command(name, *arguments, cwd=tmp_path, env=interrupted_at(module, number, tmp_path))
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.strip() in ("", "interrupted")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("fmfsd probe smoke", "fmfsd.config"),
        ("fmfsd report nowhere", "fmfsd.report.write"),
        ("fmfsd data prepare synthetic10 --out sets", "fmfsd.data.synthetic"),
    ],
)
def test_ctrl_c_ends_other_commands_quietly_too(line: str, module: str, tmp_path: Path) -> None:
    name, *arguments = line.split()
    ended = run_command(name, *arguments, cwd=tmp_path, env=interrupted_at(module, signal.SIGINT, tmp_path))
    assert ended.returncode == INTERRUPTED, ended.stderr
    assert ended.stderr.strip() in ("", "interrupted")
    assert not list(tmp_path.glob("sets/synthetic*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_partly_prepared_data_is_removed_on_a_signal(number: signal.Signals, code: int, tmp_path: Path) -> None:
    arguments = (command("fmfsd"), "data", "prepare", "synthetic100", "--out", "sets")
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any((tmp_path / "sets").glob("*/*")) and process.poll() is None:
        os.sched_yield()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert not [path for path in (tmp_path / "sets").iterdir() if path.is_dir()]
