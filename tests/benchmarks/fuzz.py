"""Fuzzing: mutated configs, set indexes and checkpoints must be accepted, or refused with an FmfsdError.

python -m tests.benchmarks.fuzz [--minutes N] [--seed N]

Anything else is a fault: another exception, an import of code from the input, more time than LIMIT_S.
"""

import argparse
import hashlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NoReturn

import torch

import fmfsd
from fmfsd.checkpoint import Checkpoint, CheckpointStore
from fmfsd.checkpoint.checkpoint import CHECKPOINT_FILES
from fmfsd.checkpoint.store import CHECKPOINT_FORMAT, MANIFEST
from fmfsd.config import DataConfig, dump_config, load_config
from fmfsd.config.load import PRESETS
from fmfsd.data.prepare import prepare
from fmfsd.data.shards.index import find_damaged_files, read_index
from fmfsd.engine.interface import EngineState
from fmfsd.errors import CheckpointError, DataError, FmfsdError
from fmfsd.run.train_position import TrainPosition
from tests.benchmarks.table import print_table
from tests.helpers.mutations import CANARY, mutations

LIMIT_S = 5.0
SHRINKING_S = 20.0
BATCH = 20
PACKAGE_DIR = str(Path(fmfsd.__file__).parent)
ACCEPTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True)
class Target:
    """A reader of bytes like the `examples`; `read` may raise FmfsdError."""

    name: str
    examples: Sequence[bytes]
    read: Callable[[bytes], object]


@dataclass
class FuzzTally:
    """Counts of the inputs by result, and the shortest input for each fault."""

    counts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, bytes] = field(default_factory=dict)
    slowest_s: float = 0.0

    def add(self, content: bytes, result: str, took_s: float) -> None:
        self.counts[result] = self.counts.get(result, 0) + 1
        self.slowest_s = max(self.slowest_s, took_s)
        if result not in (ACCEPTED, REFUSED):
            self.faults[result] = min(content, self.faults.get(result, content), key=len)

    def row(self) -> list[str]:
        """Return the table row: inputs, accepted, refused, anything else, slowest."""
        total, expected = sum(self.counts.values()), [self.counts.get(what, 0) for what in (ACCEPTED, REFUSED)]
        return [*(f"{number:,}" for number in (total, *expected, total - sum(expected))), f"{self.slowest_s:.2f}"]


class TooLongError(BaseException):
    """The time limit was exceeded. A BaseException, so that no `except Exception` in the reader catches it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLongError after that time; inside native code, once it has returned."""

    def end(*_: object) -> NoReturn:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(target: Target, content: bytes, *, limit_s: float = LIMIT_S) -> str:
    """Return "accepted", "refused", or the fault with its location."""
    result = ACCEPTED
    try:
        with time_limit(limit_s):
            target.read(content)
    except KeyboardInterrupt:
        raise
    except FmfsdError:
        result = REFUSED
    except BaseException as error:  # a Rust panic in safetensors is not an Exception
        result = f"{type(error).__name__} at {_location(error)}"
    return result if sys.modules.pop(CANARY, None) is None else "code was imported"


def _location(error: BaseException) -> str:
    """Return the innermost line of fmfsd in the traceback, or the innermost line of all if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if frame.filename.startswith(PACKAGE_DIR)] or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """Yield mutated examples endlessly; the same ones for the same seed."""
    return mutations(target.examples, Random(f"{seed} {target.name}"))


def fuzz(target: Target, contents: Iterator[bytes], tally: FuzzTally, *, tries: int) -> FuzzTally:
    """Add `tries` inputs to the tally."""
    for _ in range(tries):
        content, start = next(contents), time.perf_counter()
        result = outcome(target, content)
        tally.add(content, result, time.perf_counter() - start)
    return tally


def shrink(target: Target, content: bytes, fault: str) -> bytes:
    """Return `content` without the pieces that the fault does not need; large pieces are tried first."""
    size, place, end = max(1, len(content) // 2), 0, time.monotonic() + SHRINKING_S
    while size and content and time.monotonic() < end:
        shorter = content[:place] + content[place + size :]
        if outcome(target, shorter) == fault:
            content = shorter
        else:
            place += size
        if place >= len(content):
            size, place = size // 2, 0
    return content


def describe(target: Target, content: bytes) -> str:
    """Return `content` as Python code, relative to the target's first example if that is shorter."""
    example = target.examples[0]
    start = _common_prefix(content, example)
    end = _common_prefix(content[start:][::-1], example[start:][::-1])
    text = f"example[:{start}] + {content[start : len(content) - end]!r} + example[{len(example) - end}:]"
    return min(repr(content), text, key=len)


def _common_prefix(one: bytes, other: bytes) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def config_targets(scratch: Path) -> list[Target]:
    """Return the targets for a config file and for overrides (one per line). An accepted config must survive a round
    trip."""
    path, again = scratch / "config.yaml", scratch / "again.yaml"

    def read(source: str, *overrides: str) -> None:
        config = load_config(source, overrides)
        again.write_text(dump_config(config))
        assert load_config(str(again)) == config

    def read_file(content: bytes) -> None:
        path.write_bytes(content)
        read(str(path))

    presets = [each.read_bytes() for each in sorted(PRESETS.glob("*.yaml"))]
    everything = dump_config(load_config("smoke")).encode()
    overrides = (
        b"train.batch=64",
        b"optim.milestones=[1, 500 steps]\noptim.warmup=9 steps",
        b"model={backbone: resnet8}\ndata.root=~/x",
    )
    return [
        Target("config file", [*presets, everything], read_file),
        Target("--set", overrides, lambda content: read("smoke", *os.fsdecode(content).split("\n"))),
    ]


def index_target(folder: Path) -> Target:
    """Return the target for the index of the prepared set in `folder` and the files that it names."""
    path = folder / "index.json"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if problems := list(find_damaged_files(read_index(folder), checksums=True)):
            raise DataError(problems)

    return Target("index.json", [path.read_bytes()], read)


def checkpoint_targets(scratch: Path) -> list[Target]:
    """Return a target per file of a checkpoint: with the original manifest, and with one whose checksums are
    updated."""
    pairs = [(MANIFEST, False), *((name, fits) for fits in (False, True) for name in CHECKPOINT_FILES)]
    return [_checkpoint_file(scratch, name, fits=fits) for name, fits in pairs]


def _checkpoint_file(scratch: Path, name: str, *, fits: bool) -> Target:
    title = f"{name}{', checksums updated' if fits else ''}"
    folder = CheckpointStore(scratch / title, keep=1, check_fence=lambda: None)
    folder.path.mkdir()
    folder.write(_make_checkpoint())
    (home,) = folder.path.iterdir()
    whole = (home / name).read_bytes()

    def read(content: bytes) -> None:
        (home / name).write_bytes(content)
        if fits:
            _update_checksums(home)
        if not (newest := folder.find_newest()):
            raise CheckpointError("none can be used")
        assert folder.load(newest).position.folder_name == newest
        assert fits or name == MANIFEST or content == whole

    return Target(title, [whole], read)


def _make_checkpoint() -> Checkpoint:
    weights = {f"conv{number}.weight": torch.arange(2.0 * number).reshape(2, number) for number in range(4)}
    momentum = {f"{name}.momentum_buffer": each / 8 for name, each in weights.items()}
    progress = {"records": 7, "means": {"sums": {"loss": 0.3}, "count": 1}}
    return Checkpoint(TrainPosition(7), EngineState(weights, momentum), progress, 0.5)


def _update_checksums(home: Path) -> None:
    sums = {name: hashlib.sha256((home / name).read_bytes()).hexdigest() for name in CHECKPOINT_FILES}
    (home / MANIFEST).write_text(json.dumps({"format": CHECKPOINT_FORMAT, "sha256": sums}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        data = DataConfig(name="synthetic10", root=scratch)
        index = prepare(data, source=None, fetch=False, report=lambda what, done, total: None)
        targets = [*config_targets(Path(scratch)), index_target(index.folder), *checkpoint_targets(Path(scratch))]
        tallies = fuzz_all(targets, options.seed, options.minutes * 60)
        print_results(targets, tallies)
    sys.exit(any(tally.faults for tally in tallies))


def fuzz_all(targets: Sequence[Target], seed: int, seconds: float) -> list[FuzzTally]:
    """Fuzz the targets round-robin, so that each gets the same number of inputs."""
    tallies, contents = [FuzzTally() for _ in targets], [inputs(target, seed) for target in targets]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for each in zip(targets, contents, tallies, strict=True):
            fuzz(*each, tries=BATCH)
    return tallies


def print_results(targets: Sequence[Target], tallies: Sequence[FuzzTally]) -> None:
    """Print the table, and the smallest input for each fault."""
    rows = [[target.name, *tally.row()] for target, tally in zip(targets, tallies, strict=True)]
    print_table(["input", "inputs", "accepted", "refused", "anything else", "slowest, s"], rows)
    for target, tally in zip(targets, tallies, strict=True):
        for fault, content in tally.faults.items():
            texts = (describe(target, each) for each in (content, shrink(target, content, fault)))
            print(f"\n{target.name}: {fault}: {min(texts, key=len)}")


if __name__ == "__main__":
    main()
