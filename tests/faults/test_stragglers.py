"""A real worker that is slower than the others is named while the run goes on, and nobody else is."""

import time
from pathlib import Path

import pytest

from tests.helpers.faulty import Moment, faulty
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import launched

CHANGES = (
    *("data.shards=16", "train.batch=16", "train.epochs=60"),
    *("train.max_steps=140", "train.evaluate_every=60 epochs"),
)


def dawdles(moment: Moment) -> None:
    """Rank 1, for longer than a step takes, where no other worker is waited for."""
    if (moment.rank, moment.step) == (1, 0):
        step = moment.loop.engine.step

        def slow_step(rate: float) -> None:
            time.sleep(0.1)
            step(rate)

        moment.loop.engine.step = slow_step


@pytest.mark.fault("F8")
def test_a_worker_that_dawdles_is_named_and_nobody_else(tiny_root: Path, tmp_path: Path) -> None:
    fault = faulty(tmp_path / "fault", dawdles)
    arguments = (*tiny_arguments(tiny_root, *CHANGES), "--gpus", "2")
    with launched(tmp_path, "run", arguments, env=fault.env) as run:
        code, output = run.end()
    assert code == 0
    assert output.count("is a straggler") == 1
    assert "warning: rank 1 on " in output
