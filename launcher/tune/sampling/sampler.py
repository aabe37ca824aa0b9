"""Which configuration a search tries next: at random, each in its turn, or as a model of what is known suggests."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from fmfsd.errors import Problem
from launcher.config.launch_config import TuneOptions
from launcher.tune.records.history import Trial
from launcher.tune.space.draw import at_random, chance_of, grid_values, nth
from launcher.tune.space.parameters import RANGES, Space

SEARCHES: Mapping[str, str] = {
    "random": "every allowed value as likely as any other",
    "grid": "every combination once, in turn",
    "tpe": "tree-structured Parzen estimators",
    "gp": "a Gaussian process; parameters with a condition are drawn at random",
    "cmaes": "CMA-ES over the numbers; choices, subsets and parameters with a condition are drawn at random",
    "nsga2": "NSGA-II, a genetic search of the Pareto front",
    "nsga3": "NSGA-III, the same for many metrics",
    "qmc": "a Sobol sequence, which fills the space more evenly than chance; it learns nothing",
}
"""By name; all but the first two are Optuna's."""

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
    """`values` by config key, and what the search must be told of again when it goes on: plain JSON, both."""

    values: Mapping[str, Any]
    memory: Mapping[str, Any] = field(default_factory=dict)


def missing(search: str) -> str:
    """The package that this search needs and that is not installed; '' if there is none. Nothing is imported."""
    return next((name for name in _NEEDS[search] if find_spec(name) is None), "")


def default_search(space: Space) -> str:
    """Grids alone are gone through; anything else is learnt."""
    return "grid" if all(each.kind in ("grid", "const") or each.count == 1 for each in space.live) else "tpe"


def refused(search: str, options: TuneOptions, space: Space) -> Iterator[Problem]:
    """Why it can't be searched like this: everything that is known before the start."""
    if search not in SEARCHES:
        close = difflib.get_close_matches(search, SEARCHES, n=1)
        meant = f"did you mean {close[0]}? There are" if close else "there are"
        yield Problem(f"--search {search}", f"is unknown; {meant} {', '.join(SEARCHES)}")
        return
    if package := missing(search):
        yield Problem(f"--search {search}", f"needs {package}, which is not installed: pip install {package}")
    if search == "cmaes":
        yield from _refused_by_cmaes(options, space)
    yield from _uncovered(search, options, space)


def _refused_by_cmaes(options: TuneOptions, space: Space) -> Iterator[Problem]:
    if len(options.metrics) > 1:
        yield Problem("--search cmaes", f"looks for one metric, found {len(options.metrics)}: take tpe, nsga2 or gp")
    if not any(each.kind in RANGES and not each.when for each in space.live):
        yield Problem("--search cmaes", "adapts ranges of numbers that always exist, and there are none: take tpe")


def _uncovered(search: str, options: TuneOptions, space: Space) -> Iterator[Problem]:
    endless = [each.key for each in space.live if each.count is None]
    if search == "grid" and endless:
        yield Problem("--search grid", f"there is no end to {', '.join(endless)}: take quniform, choice or grid there")
        return
    size = (space if search == "grid" else space.grids).size() or 0
    if options.trials < size:
        trials = f"{options.trials} trials do not cover the grid's {size}"
        yield Problem(f"--trials {options.trials}", f"{trials}: set --trials {size}, or make it smaller")


class Drawer(Protocol):
    """One way to search."""

    def draw(self, number: int) -> Draw | None: ...
    def tell(self, trial: Trial) -> None: ...
    def recall(self, trial: Trial) -> None: ...


class Search:
    """What to try next. A draw depends on the seed, its number and what has been told, and on nothing else.

    So one that was made anew and recalls a ledger goes on as if it had never been interrupted.
    """

    def __init__(self, space: Space, options: TuneOptions) -> None:
        """Nothing may be `refused`. Optuna is imported only if it searches."""
        self._drawer = _drawer(space, options)

    def draw(self, number: int) -> Draw | None:
        """The next one, under this number, which is 1 of the first; None: a grid is at its end."""
        return self._drawer.draw(number)

    def tell(self, trial: Trial) -> None:
        """How a trial that was drawn has ended."""
        self._drawer.tell(trial)

    def recall(self, trial: Trial) -> None:
        """As if it had been drawn and, if it has ended, told: of all trials of a ledger, in their order."""
        self._drawer.recall(trial)


def _drawer(space: Space, options: TuneOptions) -> Drawer:
    if options.search == "random":
        return _Random(space, options.seed)
    if options.search == "grid":
        return _Grid(space)
    from launcher.tune.sampling.optuna_sampler import Modelled, Replayed  # optuna takes half a second

    return (Replayed if options.search == "cmaes" else Modelled)(space, options)


class _Unlearning:
    """What became of a trial changes nothing."""

    def tell(self, trial: Trial) -> None: ...

    def recall(self, trial: Trial) -> None: ...


class _Random(_Unlearning):
    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def draw(self, number: int) -> Draw:
        return Draw(at_random(self._space, chance_of(self._seed, number), grid_values(self._space, number)))


class _Grid(_Unlearning):
    def __init__(self, space: Space) -> None:
        self._space = space

    def draw(self, number: int) -> Draw | None:
        values = nth(self._space, number - 1)
        return None if values is None else Draw(values)
