"""Fixtures of the launcher's tests."""

import shutil
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return an empty run directory."""
    run = RunDir(tmp_path / "run")
    run.create()
    return run


@pytest.fixture
def data_root(tiny_root: Path, tmp_path: Path) -> Path:
    """Return a data root with one prepared set, which the test may change."""
    shutil.copytree(tiny_root / "cifar10", tmp_path / "root" / "cifar10")
    return tmp_path / "root"
