"""Search space parameters: their values, the conditions under which they are active, and the number of draws."""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from graphlib import TopologicalSorter
from itertools import accumulate, chain, combinations
from typing import Any

CONTINUOUS = ("uniform", "loguniform")
RANGES = (*CONTINUOUS, "quniform", "int")
LISTS = ("choice", "grid")
KINDS = (*RANGES, *LISTS, "subset", "const")
_OTHER = object()
"""Represents all values that no condition names."""


@dataclass(frozen=True)
class Parameter:
    """A parameter. `values`: a range's bounds (and step), the choices, a subset's elements, or the constant.

    `min_size` and `max_size`: bounds of a subset's size; its elements stay in order. `when`: conditions, each a key
    and the values of which it must have one for the parameter to be active.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    min_size: int = 1
    max_size: int | None = None
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def sizes(self) -> range:
        """Allowed sizes of a subset."""
        return range(self.min_size, (len(self.values) if self.max_size is None else self.max_size) + 1)

    @property
    def count(self) -> int | None:
        """The number of values; None for a continuous range."""
        if self.kind in CONTINUOUS:
            return None
        if self.kind == "subset":
            return sum(math.comb(len(self.values), size) for size in self.sizes)
        if self.kind in RANGES:
            low, high, step = self._steps
            return int((high - low) // step) + 1
        return len(self.values)

    def enumerate_values(self) -> Iterator[Any]:
        """Yield the values of a finite parameter in order."""
        if self.kind == "subset":
            yield from map(list, chain.from_iterable(combinations(self.values, size) for size in self.sizes))
        elif self.kind in RANGES:
            yield from map(self.value_at, range(self.count or 0))
        else:
            yield from self.values

    def value_at(self, number: int) -> int | float:
        """Return the value `number` steps above a range's lower bound, in decimal and not binary arithmetic."""
        low, _, step = self._steps
        value = low + number * step
        return int(value) if all(type(each) is int for each in self.values) else float(value)

    def contains(self, value: Any) -> bool:
        """Return whether the parameter can have exactly this value; False for a continuous range."""
        if self.kind == "subset":
            chosen = [each for each in self.values if isinstance(value, list) and each in value]
            return chosen == value and len(chosen) in self.sizes
        if self.kind in RANGES:
            if self.kind in CONTINUOUS or type(value) not in (int, float) or not math.isfinite(value):
                return False
            low, high, step = self._steps
            exact = Fraction(str(value))
            return low <= exact <= high and (exact - low) % step == 0
        return is_one_of(value, self.values)

    def sample(self, rng: random.Random) -> Any:
        """Return a random value, uniform over the values, or over the logarithm for loguniform."""
        if self.kind == "subset":
            return self.sort_elements(rng.sample(self.values, self._size(rng.randrange(self.count or 1))))
        if self.kind not in CONTINUOUS:
            return self.value_at(rng.randrange(self.count or 0)) if self.kind in RANGES else rng.choice(self.values)
        low, high = self.values
        if self.kind == "uniform":
            return rng.uniform(low, high)
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)

    def _size(self, number: int) -> int:
        """Return the size of subset `number`, in the order of their sizes."""
        ends = accumulate(math.comb(len(self.values), size) for size in self.sizes)
        return next(size for size, end in zip(self.sizes, ends, strict=True) if number < end)

    def sort_elements(self, elements: Sequence[Any]) -> list[Any]:
        """Return these elements in the order of the subset."""
        return [each for each in self.values if each in elements]

    def values_to_check(self) -> list[Any]:
        """Return values to validate: a range's bounds, all choices, or subsets that cover all elements and bounds."""
        if self.kind == "subset":
            least, most = self.sizes[0], self.sizes[-1]
            smallest = [list(self.values[at : at + max(least, 1)]) for at in range(len(self.values))]
            subsets = [[]] * (least == 0) + smallest + [list(self.values[:most])]
            return [each for number, each in enumerate(subsets) if self.contains(each) and each not in subsets[:number]]
        if self.kind in CONTINUOUS:
            return [float(value) for value in self.values]
        if self.kind in RANGES:
            return [self.value_at(0), self.value_at((self.count or 1) - 1)]
        return list(self.values)

    def describe(self) -> str:
        """Return the parameter as one line of text."""
        values_text = json.dumps(list(self.values))
        sizes = f", {self.sizes[0]} to {self.sizes[-1]} of them" if self.kind == "subset" else ""
        condition = "".join(f", when {key} is {' or '.join(map(str, values))}" for key, values in self.when)
        return f"{self.key}: {self.kind} {values_text}{sizes}{condition}"

    @property
    def _steps(self) -> tuple[Fraction, Fraction, Fraction]:
        """A range's lower and upper bound and step, exactly as written."""
        low, high, *step = (Fraction(str(value)) for value in self.values)
        return low, high, *(step or [Fraction(1)])  # type: ignore[return-value]


@dataclass(frozen=True)
class Space:
    """The parameters in the order of the file, and the base config and number of trials that it suggests.

    `base`: values of the config's other keys, to which conditions may refer.
    """

    config: str
    trials: int
    parameters: tuple[Parameter, ...]
    base: Mapping[str, Any] = field(default_factory=dict)

    @property
    def constants(self) -> dict[str, Any]:
        """Values that every trial has, by key."""
        return {each.key: each.values[0] for each in self.parameters if each.kind == "const" and not each.when}

    @cached_property
    def topological_order(self) -> tuple[Parameter, ...]:
        """The parameters in topological order of their conditions. Raises CycleError if the conditions form a cycle."""
        by_key = {parameter.key: parameter for parameter in self.parameters}
        depends_on = {key: [each for each, _ in by_key[key].when if each in by_key] for key in by_key}
        return tuple(by_key[key] for key in TopologicalSorter(depends_on).static_order())

    @cached_property
    def reachable(self) -> tuple[Parameter, ...]:
        """The parameters that can be active over this base, in topological order of their conditions."""
        found: dict[str, Parameter] = {}
        keys = {parameter.key for parameter in self.parameters}
        for parameter in self.topological_order:
            if all(key in found if key in keys else self._holds(key, values) for key, values in parameter.when):
                found[parameter.key] = parameter
        return tuple(found.values())

    def _holds(self, key: str, values: tuple[Any, ...]) -> bool:
        return key in self.base and is_one_of(self.base[key], values)

    def size(self) -> int | None:
        """Return the number of different draws; None if it is infinite."""
        if any(parameter.count is None for parameter in self.reachable):
            return None
        return _count_draws(self.reachable, self.base, _values_in_conditions(self.reachable), {})

    @cached_property
    def grid_part(self) -> "Space":
        """The part of the space that is enumerated: grids and constants.

        Conditions on drawn parameters are left out, because whether they hold depends on the draw.
        """
        enumerated = [parameter for parameter in self.reachable if parameter.kind in ("grid", "const")]
        known = {*(parameter.key for parameter in enumerated), *self.base}
        parts = (replace(each, when=tuple(when for when in each.when if when[0] in known)) for each in enumerated)
        return replace(self, parameters=tuple(parts))


def is_active(parameter: Parameter, drawn: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Return whether this parameter is active in the partial draw `drawn`.

    A condition refers to a parameter, which must itself be active in the draw, or to a key of the `base` config with
    its value there, whatever the draw changes in the config.
    """
    return all(is_one_of(drawn.get(key, base.get(key, _OTHER)), values) for key, values in parameter.when)


def is_one_of(value: Any, values: Sequence[Any]) -> bool:
    """Return whether `value` is one of `values`, where true is not 1, as in YAML."""
    return any(each == value and isinstance(each, bool) == isinstance(value, bool) for each in values)


def _values_in_conditions(parameters: Sequence[Parameter]) -> dict[str, list[Any]]:
    """Return the different values that conditions name, by key."""
    by_key: dict[str, list[Any]] = {}
    for key, values in chain.from_iterable(parameter.when for parameter in parameters):
        known = by_key.setdefault(key, [])
        known += [value for number, value in enumerate(values) if not is_one_of(value, [*known, *values[:number]])]
    return by_key


def _count_draws(
    parameters: Sequence[Parameter],
    base: Mapping[str, Any],
    in_conditions: Mapping[str, list[Any]],
    drawn: dict[str, Any],
) -> int:
    """Return the number of ways to draw the rest.

    Only values that conditions name are enumerated one by one, so that large ranges are counted quickly.
    """
    if not parameters:
        return 1
    first, rest = parameters[0], parameters[1:]
    if not is_active(first, drawn, base):
        return _count_draws(rest, base, in_conditions, drawn)
    special = [value for value in in_conditions.get(first.key, ()) if first.contains(value)]
    others = (first.count or 0) - len(special)
    cases = [(1, value) for value in special] + ([(others, _OTHER)] if others else [])
    return sum(times * _count_draws(rest, base, in_conditions, {**drawn, first.key: value}) for times, value in cases)


def format_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return the values as arguments of --set."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]
