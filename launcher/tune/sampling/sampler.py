"""The sampler of a sweep, by the name of the search method: random, grid, or one of Optuna's."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from fmfsd.errors import Problem
from launcher.config.launch_config import TuneOptions
from launcher.tune.records.history import Trial
from launcher.tune.space.draw import draw_random, grid_values, nth_draw, trial_rng
from launcher.tune.space.parameters import RANGES, Space

SEARCH_METHODS: Mapping[str, str] = {
    "random": "uniform random draws",
    "grid": "every combination once, in order",
    "tpe": "tree-structured Parzen estimators",
    "gp": "a Gaussian process; parameters with a condition are drawn at random",
    "cmaes": "CMA-ES over numeric ranges; choices, subsets and parameters with a condition are drawn at random",
    "nsga2": "NSGA-II, a genetic search for the Pareto front",
    "nsga3": "NSGA-III, like NSGA-II but for many metrics",
    "qmc": "a Sobol sequence, which covers the space more evenly than random draws; it does not use results",
}
"""Search methods by name; all but the first two are samplers of Optuna."""

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "random": (),
    "grid": (),
    "tpe": ("optuna",),
    "gp": ("optuna", "torch", "scipy"),
    "cmaes": ("optuna", "cmaes"),
    "nsga2": ("optuna",),
    "nsga3": ("optuna",),
    "qmc": ("optuna", "scipy"),
}


@dataclass(frozen=True)
class Draw:
    """A drawn config: `values` by config key, and the `sampler_state` to restore on resume; both are JSON."""

    values: Mapping[str, Any]
    sampler_state: Mapping[str, Any] = field(default_factory=dict)


def find_missing_package(search: str) -> str:
    """Return a package that the search method needs and that is not installed, or ''. Import nothing."""
    return next((name for name in _NEEDS[search] if find_spec(name) is None), "")


def default_search(space: Space) -> str:
    """Return `grid` for a space of grids and constants, else `tpe`."""
    return "grid" if all(each.kind in ("grid", "const") or each.count == 1 for each in space.reachable) else "tpe"


def find_search_problems(search: str, options: TuneOptions, space: Space) -> Iterator[Problem]:
    """Yield the reasons why the space can not be searched with this method."""
    if search not in SEARCH_METHODS:
        close = difflib.get_close_matches(search, SEARCH_METHODS, n=1)
        meant = f"did you mean {close[0]}? Known" if close else "known"
        yield Problem(f"--search {search}", f"is unknown; {meant} methods: {', '.join(SEARCH_METHODS)}")
        return
    if package := find_missing_package(search):
        yield Problem(f"--search {search}", f"needs {package}, which is not installed: pip install {package}")
    if search == "cmaes":
        yield from _cmaes_problems(options, space)
    yield from _grid_problems(search, options, space)


def _cmaes_problems(options: TuneOptions, space: Space) -> Iterator[Problem]:
    if len(options.metrics) > 1:
        yield Problem("--search cmaes", f"optimizes one metric, found {len(options.metrics)}: choose tpe, nsga2 or gp")
    if not any(each.kind in RANGES and not each.when for each in space.reachable):
        yield Problem("--search cmaes", "needs numeric ranges without a condition, found none: choose tpe")


def _grid_problems(search: str, options: TuneOptions, space: Space) -> Iterator[Problem]:
    endless = [each.key for each in space.reachable if each.count is None]
    if search == "grid" and endless:
        yield Problem(
            "--search grid",
            f"needs finite parameters, found continuous {', '.join(endless)}: use quniform, choice or grid",
        )
        return
    size = (space if search == "grid" else space.grid_part).size() or 0
    if options.trials < size:
        uncovered = f"fewer than the {size} combinations of the grid"
        yield Problem(f"--trials {options.trials}", f"{uncovered}: set --trials {size}, or make the grid smaller")


class SamplerBackend(Protocol):
    """A search method."""

    def draw(self, number: int) -> Draw | None: ...
    def report(self, trial: Trial) -> None: ...
    def restore(self, trial: Trial) -> None: ...


class Sampler:
    """The sampler of a sweep. A draw depends only on the seed, its number and the reported results.

    Therefore a new sampler that has restored all trials of a ledger continues as if there had been no interruption.
    """

    def __init__(self, space: Space, options: TuneOptions) -> None:
        """Create the sampler of a search without problems. Import Optuna only if the method needs it."""
        self._sampler = _build_sampler(space, options)

    def draw(self, number: int) -> Draw | None:
        """Draw the config of trial `number`, from 1 on; None if a grid is exhausted."""
        return self._sampler.draw(number)

    def report(self, trial: Trial) -> None:
        """Report the result of a trial that was drawn."""
        self._sampler.report(trial)

    def restore(self, trial: Trial) -> None:
        """Restore the state after a trial was drawn and, if it has ended, reported; call it for all trials in order."""
        self._sampler.restore(trial)


def _build_sampler(space: Space, options: TuneOptions) -> SamplerBackend:
    if options.search == "random":
        return _RandomSampler(space, options.seed)
    if options.search == "grid":
        return _GridSampler(space)
    from launcher.tune.sampling.optuna_sampler import (  # importing optuna takes half a second
        OptunaSampler,
        ReplayingOptunaSampler,
    )

    return (ReplayingOptunaSampler if options.search == "cmaes" else OptunaSampler)(space, options)


class _StatelessSampler:
    """Ignores results."""

    def report(self, trial: Trial) -> None: ...

    def restore(self, trial: Trial) -> None: ...


class _RandomSampler(_StatelessSampler):
    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def draw(self, number: int) -> Draw:
        return Draw(draw_random(self._space, trial_rng(self._seed, number), grid_values(self._space, number)))


class _GridSampler(_StatelessSampler):
    def __init__(self, space: Space) -> None:
        self._space = space

    def draw(self, number: int) -> Draw | None:
        values = nth_draw(self._space, number - 1)
        return None if values is None else Draw(values)
