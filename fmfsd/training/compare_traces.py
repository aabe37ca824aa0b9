"""Comparison of traced runs of one config: losses, gradients and samples of every step, weights at the end."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fmfsd.checkpoint.store import load_checkpoint
from fmfsd.engine.interface import EMA_SUFFIX
from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import list_positions
from fmfsd.system.atomic_files import SHARED_MODE, read_json, write_json

RELATIVE_FLOOR = 1e-6
"""Tensors below this fraction of the largest value count as that large: a gradient that is 0 in theory holds only
rounding errors."""


@dataclass(frozen=True)
class LargestDifference:
    """The largest relative difference, and the name of its tensor."""

    difference: float
    where: str


@dataclass(frozen=True)
class TraceComparison:
    """Differences between two runs: one per step, except `weights` (at the end, BatchNorm statistics included).

    `samples`: the number of samples that only one of the runs used in a step, summed over all steps.
    """

    losses: list[LargestDifference]
    gradients: list[LargestDifference]
    samples: int
    weights: LargestDifference


def compare_traces(one: RunDir, other: RunDir) -> TraceComparison:
    """Compare `other` with `one`. CheckError unless both were traced to the end, over the same steps."""
    steps = _require_alike(one, other)
    return TraceComparison(
        losses=[largest_difference(first, second) for first, second in zip(_losses(one), _losses(other), strict=True)],
        gradients=[largest_difference(_gradients(one, step), _gradients(other, step)) for step in steps],
        samples=sum(_symmetric_difference(_samples(one, step), _samples(other, step)) for step in steps),
        weights=largest_difference(_weights(one), _weights(other)),
    )


def _require_alike(*runs: RunDir) -> Sequence[int]:
    """Return the steps of the runs. CheckError if they differ or a trace is incomplete."""
    counts = [len(_losses(run)) for run in runs]
    if wrong := [run for run, count in zip(runs, counts, strict=True) if not count or count != counts[0]]:
        where = str(wrong[0].path)
        message = f"{counts} logged steps: compare runs of the same length that log every step"
        raise CheckError([Problem(where, message)])
    steps = range(1, counts[0] + 1)
    for run in runs:
        if not all(run.trace_gradients(step).exists() for step in steps) or not list_positions(run.checkpoints):
            raise CheckError([Problem(str(run.path), "not traced to its end: run it with FMFSD_TRACE=1")])
    return steps


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> LargestDifference:
    """Return the largest difference of a tensor, relative to its largest value. CheckError if the names differ."""
    if one.keys() != other.keys():
        raise CheckError(f"only one of the two runs has {', '.join(sorted(one.keys() ^ other.keys()))}")
    sizes = {name: _size(value) for name, value in one.items()}
    floor = RELATIVE_FLOOR * max(sizes.values(), default=0.0)
    differences = (
        LargestDifference(_size(other[name] - one[name]) / (max(sizes[name], floor) or 1.0), name) for name in one
    )
    return max(
        differences, key=lambda each: (math.isnan(each.difference), each.difference), default=LargestDifference(0.0, "")
    )


def _size(value: Tensor) -> float:
    return value.abs().max().item() if value.numel() else 0.0


def _symmetric_difference(one: Counter[int], other: Counter[int]) -> int:
    return ((one - other) + (other - one)).total()


def _losses(run: RunDir) -> list[dict[str, Tensor]]:
    """Return the losses of each step."""
    records = map(json.loads, run.metrics.read_text("utf-8").splitlines()) if run.metrics.exists() else ()
    return [
        {name: torch.tensor(value, dtype=torch.float64) for name, value in record.items() if name.startswith("loss")}
        for record in records
        if record["split"] == "train"
    ]


def _gradients(run: RunDir, step: int) -> dict[str, Tensor]:
    return _to_double(safetensors.torch.load_file(run.trace_gradients(step)))


def _samples(run: RunDir, step: int) -> Counter[int]:
    """Count the samples of all workers."""
    counts: Counter[int] = Counter()
    for path in run.all_trace_samples(step):
        counts.update(read_json(path)["positions"])
    return counts


def _weights(run: RunDir) -> dict[str, Tensor]:
    newest = run.checkpoints / list_positions(run.checkpoints)[0].folder_name
    engine = load_checkpoint(newest).engine
    return _to_double({**engine.model, **{f"{name}{EMA_SUFFIX}": value for name, value in engine.ema_weights.items()}})


def _to_double(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def write_comparisons(out: Path, first: Path, others: Sequence[Path]) -> None:
    """Compare `first` with each of the others and write the comparisons, in this order, to `out`."""
    comparisons = [asdict(compare_traces(RunDir(first), RunDir(other))) for other in others]
    write_json(
        out, {"first": str(first), "others": list(map(str, others)), "comparisons": comparisons}, mode=SHARED_MODE
    )
