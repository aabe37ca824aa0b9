"""A run's first weights from elsewhere: those of another run, of a checkpoint, or of a file."""

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
from fmfsd.run.init_source import KEY, weights_at
from fmfsd.system.atomic_files import access_remedy

log = logging.getLogger(__name__)
REMEDY = f"set method, model, distill.beta and .feature, and the data as in the run that it is from, or leave {KEY} out"


def begin_with(origin: str, engine: Engine, comms: Comms) -> None:
    """Every worker's network gets the weights and batch statistics that rank 0 finds at `origin`; nothing else changes.

    Raises CheckError on all workers if there are none, or with everything that does not fit.
    """
    wanted = engine.state().model
    found, wrong = _fitting(origin, wanted) if comms.rank == 0 else ({}, [])
    if told := comms.share(wrong):
        raise CheckError([Problem(KEY, text) for text in told])
    weights = {name: _contiguous_copy(found.get(name, like), like) for name, like in wanted.items()}
    for tensor in weights.values():  # sent as they lie in memory, so everywhere in the same order
        comms.spread_(tensor)
    engine.load(EngineState(weights, {}))


def _contiguous_copy(values: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format).copy_(values)


def _fitting(origin: str, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights there, and what is wrong with them."""
    try:
        path, weights = _newest_whole(origin)
    except CheckError as error:
        return {}, [problem.message for problem in error.problems]
    wrong = [f"{path}: {text}; {REMEDY}" for text in misfits(weights, wanted)]
    if not wrong:
        log.info("begins with the weights of %s", path)
    return weights, wrong


def _newest_whole(origin: str) -> tuple[Path, dict[str, Tensor]]:
    damaged = []
    for path in weights_at(origin):
        try:
            return path, load_checkpoint(path).engine.evaluated if path.is_dir() else _read(path)
        except UnreadableCheckpointError as error:
            raise CheckError([Problem(KEY, str(error))]) from error
        except CheckpointError as error:
            damaged.append(Problem(KEY, str(error)))
    raise CheckError(damaged)


def _read(path: Path) -> dict[str, Tensor]:
    """Weights are data and can hold no code, so they may belong to anyone, and links are followed."""
    try:
        return safetensors.torch.load(path.read_bytes())
    except PermissionError as error:
        raise UnreadableCheckpointError(f"{path} can't be read: {access_remedy(path)}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be used: {error}") from error


def misfits(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    """Every name that keeps `weights` from standing in for `wanted`, by what is wrong with it."""
    both = sorted(weights.keys() & wanted.keys())
    shapes = {name: (tuple(weights[name].shape), tuple(wanted[name].shape)) for name in both}
    kinds = {
        "does not have": sorted(wanted.keys() - weights.keys()),
        "has, and this network has not": sorted(weights.keys() - wanted.keys()),
        "has in another shape": [
            f"{name} {there} and not {here}" for name, (there, here) in shapes.items() if there != here
        ],
        "has in another type": [
            f"{name} {weights[name].dtype}"
            for name in both
            if weights[name].is_floating_point() != wanted[name].is_floating_point()
        ],
        "has with NaN or infinite values": [name for name in both if not weights[name].double().isfinite().all()],
    }
    for kind, names in kinds.items():
        if names:
            yield f"{kind}: {', '.join(names)}"
