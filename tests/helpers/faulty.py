"""Faults inside real workers: a function that each worker calls before every step, brought in by PYTHONPATH.

This file itself becomes the `sitecustomize` of every process of a launch, with the test's function at its end; so it
imports the standard library only, and only a process that imports fmfsd.training.loop is changed.
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
    """Just before a worker's step: `step` steps are done."""

    loop: Any
    attempt: int
    rank: int
    step: int

    @property
    def at(self) -> tuple[int, int, int]:
        return self.attempt, self.rank, self.step

    def leave_word(self) -> None:
        """Tell the test that this is reached."""
        _marker(_HERE, self.attempt, self.rank).touch()

    def hold(self) -> None:
        """Tell it, and wait until the test says go, or for ever."""
        self.leave_word()
        while not (_HERE / "go").exists():
            time.sleep(0.02)

    def replace_loss(self, terms: Callable[..., Any]) -> None:
        """What computes the loss from now on."""
        self.loop.engine.terms = terms


@dataclass(frozen=True)
class Faulty:
    """A folder for PYTHONPATH, with the markers that workers leave in it."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))}

    def held(self, *, attempt: int, rank: int) -> Path:
        """There once that worker holds; its age tells since when."""
        return _marker(self.folder, attempt, rank)

    def go(self) -> None:
        (self.folder / "go").touch()


def faulty(folder: Path, fault: Callable[[Moment], None]) -> Faulty:
    """Let every worker of a launch with this `env` call `fault`, which must bring all that it needs with it."""
    folder.mkdir()
    source = (
        f"{Path(__file__).read_text()}\n\n{getsource(fault)}\n\nsys.meta_path.insert(0, _Import({fault.__name__}))\n"
    )
    (folder / "sitecustomize.py").write_text(source)
    return Faulty(folder)


def _marker(folder: Path, attempt: int, rank: int) -> Path:
    return folder / f"held-{attempt}-{rank}"


class _Import:
    """Waits in sys.meta_path for fmfsd.training.loop, and changes it before anybody uses it."""

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

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self._change(module)

        loader.exec_module = execute_and_change
        return spec

    def _change(self, module: ModuleType) -> None:
        fault, train_one_step, attempt = self._fault, module.Loop._train_one_step, int(os.environ["FMFSD_ATTEMPT"])

        def with_fault(loop: Any) -> None:
            fault(Moment(loop, attempt, loop.comms.rank, loop.position.step))
            train_one_step(loop)

        module.Loop._train_one_step = with_fault
