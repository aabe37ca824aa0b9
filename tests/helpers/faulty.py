"""Fault injection into real workers: each worker calls a function of the test before every step.

A copy of this file with the test's function at its end becomes the `sitecustomize` module of every process of a launch,
by PYTHONPATH. So it imports the standard library only, and changes only processes that import fmfsd.training.loop.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from inspect import getsource
from pathlib import Path
from types import ModuleType
from typing import Any

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Moment:
    """The moment before a worker's step, after `step` completed steps."""

    loop: Any
    attempt: int
    rank: int
    step: int

    @property
    def attempt_rank_step(self) -> tuple[int, int, int]:
        return self.attempt, self.rank, self.step

    def mark_reached(self) -> None:
        """Create the marker file by which the test knows that this moment is reached."""
        _marker(_HERE, self.attempt, self.rank).touch()

    def hold(self) -> None:
        """Create the marker file, and wait until the test calls `Faulty.go`."""
        self.mark_reached()
        while not (_HERE / "go").exists():
            time.sleep(0.02)

    def replace_loss(self, terms: Callable[..., Any]) -> None:
        """Compute the loss by `terms` from now on."""
        self.loop.engine.compute_terms = terms


@dataclass(frozen=True)
class FaultInjection:
    """A folder for PYTHONPATH, in which workers create marker files."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))}

    def hold_marker(self, *, attempt: int, rank: int) -> Path:
        """Return the marker file that the worker creates when it holds; its age is the duration of the hold."""
        return _marker(self.folder, attempt, rank)

    def release(self) -> None:
        (self.folder / "go").touch()


def inject_fault(folder: Path, fault: Callable[[Moment], None]) -> FaultInjection:
    """Let every worker of a launch with the returned `env` call `fault`, whose source must be self-contained."""
    folder.mkdir()
    install = f"sys.meta_path.insert(0, _LoopPatcher({fault.__name__}))"
    (folder / "sitecustomize.py").write_text(f"{Path(__file__).read_text()}\n\n{getsource(fault)}\n\n{install}\n")
    return FaultInjection(folder)


def _marker(folder: Path, attempt: int, rank: int) -> Path:
    return folder / f"held-{attempt}-{rank}"


class _LoopPatcher:
    """An import hook in sys.meta_path that changes fmfsd.training.loop when it is imported."""

    def __init__(self, fault: Callable[[Moment], None]) -> None:
        self._fault = fault

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "fmfsd.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            self._patch(module)

        loader.exec_module = execute_and_patch
        return spec

    def _patch(self, module: ModuleType) -> None:
        fault, train_one_step, attempt = self._fault, module.Loop._train_one_step, int(os.environ["FMFSD_ATTEMPT"])

        def with_fault(loop: Any) -> None:
            fault(Moment(loop, attempt, loop.comms.rank, loop.position.step))
            train_one_step(loop)

        module.Loop._train_one_step = with_fault
