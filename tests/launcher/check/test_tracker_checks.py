"""Checks of the trackers."""

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NoReturn

import pytest

from launcher.check.tracker_checks import OLDEST_WANDB
from tests.helpers.checks import assert_no_problems, run_failing_checks
from tests.helpers.runs import tiny_config

VERSION = "launcher.check.tracker_checks.version"


def test_a_missing_wandb_is_reported_before_anything_starts(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(VERSION, missing)
    code, text = run_failing_checks(tiny_config(data_root, "tracker=[wandb]"))
    assert (code, "tracker: wandb: not installed in this environment: pip install 'wandb>=0.22.3'" in text) == (3, True)
    assert_no_problems(tiny_config(data_root, "tracker=[tensorboard]"))


def test_a_wandb_that_refuses_current_api_keys_is_refused(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VERSION, lambda name: "0.22.2")
    code, text = run_failing_checks(tiny_config(data_root, "tracker=[wandb]"))
    assert (code, "release 0.22.2 rejects today's API keys" in text) == (3, True)
    for newer in ("0.22.3", "0.31.0", "0.23.0rc1"):
        monkeypatch.setattr(VERSION, lambda name, newer=newer: newer)
        assert_no_problems(tiny_config(data_root, "tracker=[wandb]"))


def test_the_extra_installs_no_older_wandb() -> None:
    """https://docs.wandb.ai/support/models/articles/why-does-my-api-key-fail-with-must-be-40-characters"""
    bounds = [bound for each in requires("fmfsd") or () if (bound := re.match(r"wandb.*>=([\d.]+)", each))]
    assert {tuple(map(int, bound[1].split("."))) for bound in bounds} == {OLDEST_WANDB}
    assert OLDEST_WANDB >= (0, 22, 3)
