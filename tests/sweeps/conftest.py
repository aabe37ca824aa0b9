"""Two sweeps beside each other that nobody disturbs, for tests that compare with one or read what one leaves."""

from pathlib import Path

import pytest

from launcher.tune.sweep_dir import SweepDir
from tests.helpers.searches import arguments, sweeping


@pytest.fixture(scope="session")
def two_sweeps(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepDir, SweepDir]:
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    words = [arguments(tiny_root, folder, "--concurrent", "2") for folder in folders]
    with sweeping(*words[0], cwd=folders[0]) as first, sweeping(*words[1], cwd=folders[1]) as second:
        ends = first.ended(), second.ended()
    assert [code for code, _, _ in ends] == [0, 0], ends
    return first.sweep, second.sweep


@pytest.fixture(scope="session")
def undisturbed(two_sweeps: tuple[SweepDir, SweepDir]) -> SweepDir:
    return two_sweeps[0]
