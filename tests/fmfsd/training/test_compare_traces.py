"""Traces of runs, and the comparison of runs by their traces."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fmfsd.distributed.collectives import SingleWorkerComms
from fmfsd.errors import CheckError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_json
from fmfsd.training.compare_traces import compare_traces, largest_difference
from fmfsd.training.trace import TraceWriter
from tests.helpers.runs import make_loop, make_run, tiny_config, train_run

CHANGES = ("data.shards=4", "train.batch=8", "train.micro_batch=4", "train.max_steps=2", "optim.milestones=[]")


@pytest.fixture
def traced(tiny_root: Path, tmp_path: Path) -> RunDir:
    """Return a traced run of two steps with two micro-batches each, on one worker."""
    run = make_run(tmp_path / "traced", tiny_config(tiny_root, *CHANGES))
    with closing(make_loop(run, SingleWorkerComms())) as loop:
        loop.trace = TraceWriter(run, 0)
        loop.resume()
        loop.run()
    return run


def test_a_trace_has_the_samples_and_gradients_of_each_step(traced: RunDir) -> None:
    with closing(make_loop(traced, SingleWorkerComms())) as loop:
        parameters = {name: value.shape for name, value in loop.engine.network.named_parameters()}
        batches = loop.batches
    for step in (1, 2):
        ids = [batches.ids(0, 2 * step - 2), batches.ids(0, 2 * step - 1)]
        assert read_json(traced.trace_samples(step, 0)) == {"positions": torch.cat(ids).tolist()}
    gradients = safetensors.torch.load_file(traced.trace_gradients(2))
    assert {name: value.shape for name, value in gradients.items()} == parameters
    assert not traced.trace_gradients(3).exists()


def test_differences_are_found_with_their_location(traced: RunDir, tmp_path: Path) -> None:
    same = compare_traces(traced, traced)
    assert max(each.difference for each in (*same.losses, *same.gradients, same.weights)) == same.samples == 0
    other = RunDir(tmp_path / "other")
    shutil.copytree(traced.path, other.path)
    first, *others = read_json(other.trace_samples(2, 0))["positions"]
    write_json(other.trace_samples(2, 0), {"positions": [first, first, *others[1:]]})
    gradients = safetensors.torch.load_file(other.trace_gradients(2))
    gradients["deepest_head.classifier.bias"] *= 1.5
    safetensors.torch.save_file(gradients, other.trace_gradients(2))
    comparison = compare_traces(traced, other)
    assert comparison.samples == 2
    assert comparison.gradients[0].difference == comparison.weights.difference == 0
    assert comparison.gradients[1].difference == pytest.approx(0.5)
    assert comparison.gradients[1].where == "deepest_head.classifier.bias"


def test_untraced_and_longer_runs_are_errors(traced: RunDir, tiny_root: Path, tmp_path: Path) -> None:
    for name, changes, expected in (
        ("untraced", (), "not traced to its end"),
        ("longer", ("train.max_steps=3",), "compare runs of the same length"),
    ):
        run = make_run(tmp_path / name, tiny_config(tiny_root, *CHANGES, *changes))
        train_run(SingleWorkerComms(), run.path)
        with pytest.raises(CheckError, match=expected):
            compare_traces(traced, run)


def test_differences_of_tiny_gradients_are_relative_to_the_largest_gradient() -> None:
    one = {"a": torch.tensor([2.0, -4.0]), "b": torch.tensor([1e-18])}
    other = {"a": torch.tensor([2.0, -4.0]), "b": torch.tensor([-1e-18])}
    assert largest_difference(one, other).difference == pytest.approx(2e-18 / 4e-6)
    assert largest_difference({"a": torch.zeros(2)}, {"a": torch.zeros(2)}).difference == 0
    with pytest.raises(CheckError, match="only one of the two runs has b"):
        largest_difference(one, {"a": one["a"]})


def test_nan_is_the_largest_difference() -> None:
    one = {name: torch.ones(2) for name in "ab"}
    assert largest_difference(one, {"a": torch.zeros(2), "b": torch.tensor([1.0, torch.nan])}).where == "b"
