"""What the check says of trackers."""

from pathlib import Path

import pytest

from tests.helpers.checks import problems, sound
from tests.helpers.runs import tiny_config


def test_where_wandb_is_missing_it_is_said_before_anything_starts(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.check.of_trackers.find_spec", lambda name: None)
    code, text = problems(tiny_config(prepared, "tracker=[wandb]"))
    assert (code, "tracker: wandb: not installed in this environment: pip install wandb" in text) == (3, True)
    sound(tiny_config(prepared, "tracker=[tensorboard]"))
