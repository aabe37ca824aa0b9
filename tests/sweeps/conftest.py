"""A sweep that nobody disturbs, for all tests that compare with one or read what one leaves."""

from pathlib import Path

import pytest

from launcher.tune.sweep_dir import SweepDir
from tests.helpers.searches import arguments, tune


@pytest.fixture(scope="session")
def undisturbed(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepDir:
    folder = tmp_path_factory.mktemp("undisturbed")
    answer = tune(*arguments(tiny_root, folder, "--concurrent", "2"), cwd=folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return SweepDir(folder / "sweep")
