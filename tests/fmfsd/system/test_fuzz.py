"""Fuzzing: any config, index or checkpoint is accepted, or rejected quickly by one of our errors."""

import json
import logging
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from tests.benchmarks.fuzz import (
    ACCEPTED,
    REFUSED,
    FuzzTally,
    Target,
    checkpoint_targets,
    config_targets,
    describe,
    fuzz,
    index_target,
    inputs,
    outcome,
    shrink,
)
from tests.helpers.mutations import TOKENS

SEED = 7


def assert_accepted_or_rejected(targets: Sequence[Target], *, tries: int) -> None:
    for target in targets:
        tally = fuzz(target, inputs(target, SEED), FuzzTally(), tries=tries)
        faults = [f"{target.name}: {fault}: {describe(target, each)}" for fault, each in tally.faults.items()]
        assert not faults, "\n".join(faults)
        assert {ACCEPTED, REFUSED} == tally.counts.keys(), target.name


def test_any_config_is_accepted_or_rejected(tmp_path: Path) -> None:
    assert_accepted_or_rejected(config_targets(tmp_path), tries=800)


def test_any_index_is_accepted_or_rejected(synthetic_root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(synthetic_root / "synthetic10", tmp_path / "synthetic10")
    assert_accepted_or_rejected([index_target(folder)], tries=1_000)


def test_any_checkpoint_is_accepted_or_rejected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "fmfsd.checkpoint")
    assert_accepted_or_rejected(checkpoint_targets(tmp_path), tries=400)


@pytest.mark.parametrize("read", [yaml.unsafe_load, pickle.loads])
def test_the_fuzzer_detects_executed_code(read: Callable[[bytes], object]) -> None:
    assert "code was imported" in {outcome(Target("unsafe", [], read), token) for token in TOKENS}


def test_the_fuzzer_detects_inputs_that_take_too_long() -> None:
    slow = Target("slow", [], lambda content: time.sleep(60))
    assert outcome(slow, b"", limit_s=0.05).startswith("TooLongError")


def test_the_fuzzer_detects_other_exceptions_and_shrinks_their_input() -> None:
    target = Target("JSON", [b'{"a": [1, 2, 3]}'], json.loads)
    tally = fuzz(target, inputs(target, SEED), FuzzTally(), tries=200)
    (fault, content), *_ = (each for each in tally.faults.items() if each[0].startswith("UnicodeDecodeError"))
    assert len(shrink(target, content, fault)) == 1


def test_a_long_input_is_described_by_its_changes() -> None:
    target = Target("any", [b"abcd" * 50], json.loads)
    assert describe(target, b"abcd" * 20 + b"\xff" + b"abcd" * 30) == r"example[:80] + b'\xff' + example[80:]"
    assert describe(target, b"short") == "b'short'"
