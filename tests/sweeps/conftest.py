"""Two concurrent, undisturbed sweeps: one with real training, and one with stub workers as a reference for other
tests."""

from pathlib import Path

import pytest

from launcher.run_dir.sweep_dir import SweepDir
from tests.helpers.searches import FIVE_EPOCHS, METRICS, STUB_SPACE, start_sweep, sweep_arguments
from tests.helpers.stub_training import StubTraining, stub_training


@pytest.fixture
def stub(tmp_path: Path) -> StubTraining:
    return stub_training(tmp_path / "stub")


@pytest.fixture
def stub_arguments(tiny_root: Path, tmp_path: Path) -> list[str]:
    """Return the arguments of the undisturbed sweep of stub workers, for this test's folder."""
    return _stub_arguments(tiny_root, tmp_path)


def _stub_arguments(root: Path, folder: Path) -> list[str]:
    return sweep_arguments(root, folder, *METRICS, "--concurrent", "2", space=STUB_SPACE, changes=FIVE_EPOCHS)


@pytest.fixture(scope="session")
def two_sweeps(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepDir, SweepDir]:
    folders = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("undisturbed")
    argvs = (
        sweep_arguments(tiny_root, folders[0], "--trials", "2", "--concurrent", "2"),
        _stub_arguments(tiny_root, folders[1]),
    )
    stub = stub_training(folders[1] / "stub")
    with start_sweep(*argvs[0], cwd=folders[0]) as first:
        first.wait_for(first.sweep.ledger.exists, "its first fact")  # the cost probe has run by then
        with start_sweep(*argvs[1], cwd=folders[1], env=stub.env) as second:
            ends = second.wait_for_end(), first.wait_for_end()
    assert [code for code, _, _ in ends] == [0, 0], ends
    return first.sweep, second.sweep


@pytest.fixture(scope="session")
def trained(two_sweeps: tuple[SweepDir, SweepDir]) -> SweepDir:
    """Return a sweep of two trials with real training."""
    return two_sweeps[0]


@pytest.fixture(scope="session")
def undisturbed(two_sweeps: tuple[SweepDir, SweepDir]) -> SweepDir:
    """Return a sweep of three trials with stub workers and two metrics."""
    return two_sweeps[1]
