"""The check and a worker on a machine where torch.compile lacks a compiler or the Python headers."""

import sysconfig
from pathlib import Path

import pytest
import torch

from fmfsd.config import load_config
from fmfsd.engine.compiled_pass import is_compiled
from fmfsd.run.run_dir import RunDir
from fmfsd.system.compile_requirements import find_missing_compiler
from launcher.agent.available_resources import Resources
from launcher.check.launch_checks import find_warnings
from launcher.config.launch_config import LaunchConfig
from launcher.resources.site import Site
from tests.helpers.checks import run_failing_checks
from tests.helpers.runs import tiny_config

CUDA = torch.device("cuda")
ON_A_GPU = Site(Resources(cores=2, gpus=("0",)))


@pytest.fixture
def no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with gcc, but without the Python headers, as Debian without python3-dev."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    (tmp_path / "gcc").touch(mode=0o755)
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_headers")
def test_a_worker_with_auto_is_not_compiled_without_the_headers_of_python(tmp_path: Path) -> None:
    config = load_config("smoke")
    assert not is_compiled(config, CUDA)
    (tmp_path / "Python.h").touch()
    assert is_compiled(config, CUDA)


@pytest.mark.usefixtures("no_headers")
def test_the_check_warns_about_missing_headers_and_refuses_compile_true(data_root: Path, tmp_path: Path) -> None:
    run, launch = tiny_config(data_root), LaunchConfig()
    compile_warnings = [
        text for text in find_warnings(run, launch, ON_A_GPU, RunDir(tmp_path / "run")) if "compiled" in text
    ]
    assert compile_warnings == [
        f"passes will not be compiled, and training takes longer: {find_missing_compiler('cuda')}"
    ]
    assert f"{tmp_path}/Python.h is missing: install Python's headers" in compile_warnings[0]
    code, text = run_failing_checks(tiny_config(data_root, "train.compile=true"))
    assert (code, "train.compile: can't work here" in text, "Python.h is missing" in text) == (3, True, True)


def test_without_a_compiler_the_message_says_which_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_missing_compiler("cuda") == "no compiler found: install gcc or clang"
    assert find_missing_compiler("cpu") == "no compiler found: install c++ or g++ or clang++"
    assert not is_compiled(load_config("smoke"), CUDA)
