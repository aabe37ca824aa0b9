"""Stragglers: a real worker that is slower than the others is reported during the run, and no other is."""

import time
from pathlib import Path

import pytest

from tests.helpers.faulty import Moment, inject_fault
from tests.helpers.launches import tiny_arguments
from tests.helpers.processes import start_launch

CHANGES = (
    *("data.shards=16", "train.batch=16", "train.epochs=60"),
    *("train.max_steps=140", "train.evaluate_every=60 epochs"),
)


def slows_rank_1_down(moment: Moment) -> None:
    """Add a delay to each step of rank 1, outside of the collectives."""
    if (moment.rank, moment.step) == (1, 0):
        step = moment.loop.engine.step

        def slow_step(rate: float) -> None:
            time.sleep(0.1)
            step(rate)

        moment.loop.engine.step = slow_step


@pytest.mark.fault("F8")
def test_a_slow_worker_is_reported_as_straggler_and_no_other(tiny_root: Path, tmp_path: Path) -> None:
    fault = inject_fault(tmp_path / "fault", slows_rank_1_down)
    arguments = (*tiny_arguments(tiny_root, *CHANGES), "--gpus", "2")
    with start_launch(tmp_path, "run", arguments, env=fault.env) as run:
        code, output = run.wait_for_end()
    assert code == 0
    assert output.count("is a straggler") == 1
    assert "warning: rank 1 on " in output
