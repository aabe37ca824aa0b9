"""Initial weights (train.init_from) from another run, a checkpoint, or a file."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fmfsd.checkpoint.store import load_checkpoint
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.interface import Engine, EngineState
from fmfsd.errors import CheckError, CheckpointError, Problem, UnreadableCheckpointError
from fmfsd.run.init_weights_source import INIT_FROM_KEY, find_weights
from fmfsd.system.atomic_files import access_remedy

log = logging.getLogger(__name__)
REMEDY = f"set method, model, distill.beta and .feature, and the data as in the source run, or unset {INIT_FROM_KEY}"


def load_init_weights(source: str, engine: Engine, comms: Comms) -> None:
    """Load the weights and batch statistics at `source` on rank 0 and broadcast them to all workers.

    Raises CheckError on all workers if there are no weights, or with all mismatches.
    """
    expected = engine.state().model
    loaded, local_problems = _load_matching(source, expected) if comms.rank == 0 else ({}, [])
    if problems := comms.broadcast_object(local_problems):
        raise CheckError([Problem(INIT_FROM_KEY, text) for text in problems])
    weights = {name: _contiguous_copy(loaded.get(name, like), like) for name, like in expected.items()}
    for tensor in weights.values():  # contiguous, so that the memory layout is the same on all workers
        comms.broadcast_(tensor)
    engine.load(EngineState(weights, {}))


def _contiguous_copy(values: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format).copy_(values)


def _load_matching(source: str, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights at `source`, and their problems."""
    try:
        path, weights = _load_newest_intact(source)
    except CheckError as error:
        return {}, [problem.message for problem in error.problems]
    problems = [f"{path}: {text}; {REMEDY}" for text in find_mismatches(weights, expected)]
    if not problems:
        log.info("initial weights loaded from %s", path)
    return weights, problems


def _load_newest_intact(source: str) -> tuple[Path, dict[str, Tensor]]:
    damaged = []
    for path in find_weights(source):
        try:
            return path, load_checkpoint(path).engine.evaluated_weights if path.is_dir() else _read(path)
        except UnreadableCheckpointError as error:
            raise CheckError([Problem(INIT_FROM_KEY, str(error))]) from error
        except CheckpointError as error:
            damaged.append(Problem(INIT_FROM_KEY, str(error)))
    raise CheckError(damaged)


def _read(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file: they can't contain code, so the file may belong to any user or be a link."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except PermissionError as error:
        raise UnreadableCheckpointError(f"{path} can't be read: {access_remedy(path)}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be used: {error}") from error


def find_mismatches(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield one text per kind of mismatch between `weights` and `expected`, with all affected names."""
    both = sorted(weights.keys() & expected.keys())
    shapes = {name: (tuple(weights[name].shape), tuple(expected[name].shape)) for name in both}
    kinds = {
        "missing keys": sorted(expected.keys() - weights.keys()),
        "unexpected keys": sorted(weights.keys() - expected.keys()),
        "other shapes": [
            f"{name} {actual}, expected {required}" for name, (actual, required) in shapes.items() if actual != required
        ],
        "other dtypes": [
            f"{name} {weights[name].dtype}"
            for name in both
            if weights[name].is_floating_point() != expected[name].is_floating_point()
        ],
        "NaN or infinite values": [name for name in both if not weights[name].double().isfinite().all()],
    }
    for kind, names in kinds.items():
        if names:
            yield f"{kind}: {', '.join(names)}"
