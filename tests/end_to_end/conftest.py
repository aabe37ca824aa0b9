"""Fixtures for tests of complete launches."""

from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.processes import start_launch
from tests.helpers.runs import DIRECT, TINY

SIXTY_STEPS = ("--set", "train.max_steps=60")


@pytest.fixture(scope="session")
def arguments(tiny_root: Path) -> tuple[str, ...]:
    """Return a launch with two node agents that does not finish or save a checkpoint during a test."""
    changes = (*TINY, f"data.root={tiny_root}", "data.shards=16", "train.batch=16", "train.epochs=60")
    every = ("train.evaluate_every=60 epochs", "checkpoint.every_epochs=60")
    settings = (part for change in (*changes, *every) for part in ("--set", change))
    return ("cifar100-resnet18", *DIRECT, "--nodes", "2", "--gpus", "1", "--max-restarts", "0", *settings)


@pytest.fixture(scope="session")
def whole(arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return an uninterrupted run of SIXTY_STEPS."""
    with start_launch(tmp_path_factory.mktemp("whole"), "run", (*arguments, *SIXTY_STEPS)) as run:
        assert run.wait_for_end()[0] == 0
    return run.run
