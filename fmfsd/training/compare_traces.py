"""How far traced runs of one config are apart: losses, gradients and samples of every step, weights at the end."""

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
from fmfsd.engine.interface import AVERAGE
from fmfsd.errors import CheckError, Problem
from fmfsd.run.run_dir import RunDir
from fmfsd.run.train_position import positions_in
from fmfsd.system.atomic_files import SHARED, read_json, write_json

FLOOR = 1e-6
"""What is smaller than so much of the largest value is measured by that: of a gradient that is 0 in theory, rounding is
all there is."""


@dataclass(frozen=True)
class Largest:
    """The largest relative difference, and of what."""

    difference: float
    where: str


@dataclass(frozen=True)
class Comparison:
    """Of a run with another: a difference a step, except for `weights`, which are those at the end, BN's included.

    `samples` counts those that only one of the two has taken in a step, over all steps.
    """

    losses: list[Largest]
    gradients: list[Largest]
    samples: int
    weights: Largest


def compare(one: RunDir, other: RunDir) -> Comparison:
    """How far `other` is from `one`. CheckError unless both were traced to their end, over the same steps."""
    steps = _require_alike(one, other)
    return Comparison(
        losses=[largest_difference(first, second) for first, second in zip(_losses(one), _losses(other), strict=True)],
        gradients=[largest_difference(_gradients(one, step), _gradients(other, step)) for step in steps],
        samples=sum(_apart(_samples(one, step), _samples(other, step)) for step in steps),
        weights=largest_difference(_weights(one), _weights(other)),
    )


def _require_alike(*runs: RunDir) -> Sequence[int]:
    """The steps that they have made."""
    counts = [len(_losses(run)) for run in runs]
    if wrong := [run for run, count in zip(runs, counts, strict=True) if not count or count != counts[0]]:
        where, message = str(wrong[0].path), f"{counts} logged steps: compare runs of one length that log every step"
        raise CheckError([Problem(where, message)])
    steps = range(1, counts[0] + 1)
    for run in runs:
        if not all(run.traced_gradients(step).exists() for step in steps) or not positions_in(run.checkpoints):
            raise CheckError([Problem(str(run.path), "not traced to its end: run it with FMFSD_TRACE=1")])
    return steps


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Largest:
    """Over all names: a tensor's largest difference by its largest value. CheckError if the names are not the same."""
    if one.keys() != other.keys():
        raise CheckError(f"one of the two alone has {', '.join(sorted(one.keys() ^ other.keys()))}")
    sizes = {name: _size(value) for name, value in one.items()}
    floor = FLOOR * max(sizes.values(), default=0.0)
    found = (Largest(_size(other[name] - one[name]) / (max(sizes[name], floor) or 1.0), name) for name in one)
    return max(found, key=lambda each: (math.isnan(each.difference), each.difference), default=Largest(0.0, ""))


def _size(value: Tensor) -> float:
    return value.abs().max().item() if value.numel() else 0.0


def _apart(one: Counter[int], other: Counter[int]) -> int:
    return ((one - other) + (other - one)).total()


def _losses(run: RunDir) -> list[dict[str, Tensor]]:
    """Of each step."""
    records = map(json.loads, run.metrics.read_text("utf-8").splitlines()) if run.metrics.exists() else ()
    return [
        {name: torch.tensor(value, dtype=torch.float64) for name, value in record.items() if name.startswith("loss")}
        for record in records
        if record["split"] == "train"
    ]


def _gradients(run: RunDir, step: int) -> dict[str, Tensor]:
    return _in_double(safetensors.torch.load_file(run.traced_gradients(step)))


def _samples(run: RunDir, step: int) -> Counter[int]:
    """Over all workers."""
    found: Counter[int] = Counter()
    for path in run.all_traced_samples(step):
        found.update(read_json(path)["positions"])
    return found


def _weights(run: RunDir) -> dict[str, Tensor]:
    newest = run.checkpoints / positions_in(run.checkpoints)[0].folder_name
    engine = load_checkpoint(newest).engine
    return _in_double({**engine.model, **{f"{name}{AVERAGE}": value for name, value in engine.averages.items()}})


def _in_double(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def write_comparisons(out: Path, first: Path, others: Sequence[Path]) -> None:
    """Of `first` with each of the others, in their order."""
    compared = [asdict(compare(RunDir(first), RunDir(other))) for other in others]
    write_json(out, {"first": str(first), "others": list(map(str, others)), "comparisons": compared}, mode=SHARED)
