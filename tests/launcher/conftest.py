"""Fixtures of the launcher's tests."""

import shutil
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run's folder with nothing in it."""
    run = RunDir(tmp_path / "run")
    run.create()
    return run


@pytest.fixture
def prepared(tiny_root: Path, tmp_path: Path) -> Path:
    """A root of this test's own, with one prepared set."""
    shutil.copytree(tiny_root / "cifar10", tmp_path / "root" / "cifar10")
    return tmp_path / "root"
