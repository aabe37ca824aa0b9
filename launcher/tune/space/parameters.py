"""What may vary in a search: typed parameters, when they exist, and in how many ways they go together."""

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

ENDLESS = ("uniform", "loguniform")
RANGES = (*ENDLESS, "quniform", "int")
LISTS = ("choice", "grid")
KINDS = (*RANGES, *LISTS, "subset", "const")
_OTHER = object()
"""Stands for all values that no condition asks for."""


@dataclass(frozen=True)
class Parameter:
    """One thing that may vary. `values`: a range's ends (and step), the choices, a subset's elements, or the constant.

    `least` and `most` bound the size of a subset, whose elements keep their order; `when` are keys and the values, one
    of which each must have for the parameter to exist.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    least: int = 1
    most: int | None = None
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def sizes(self) -> range:
        """Of a subset."""
        return range(self.least, (len(self.values) if self.most is None else self.most) + 1)

    @property
    def count(self) -> int | None:
        """How many values it has; None: there is no end to them."""
        if self.kind in ENDLESS:
            return None
        if self.kind == "subset":
            return sum(math.comb(len(self.values), size) for size in self.sizes)
        if self.kind in RANGES:
            low, high, step = self._steps
            return int((high - low) // step) + 1
        return len(self.values)

    def each(self) -> Iterator[Any]:
        """Its values in their order, if there is an end to them."""
        if self.kind == "subset":
            yield from map(list, chain.from_iterable(combinations(self.values, size) for size in self.sizes))
        elif self.kind in RANGES:
            yield from map(self.step, range(self.count or 0))
        else:
            yield from self.values

    def step(self, number: int) -> int | float:
        """The value so many steps above a range's low end, without what binary fractions add to it."""
        low, _, step = self._steps
        value = low + number * step
        return int(value) if all(type(each) is int for each in self.values) else float(value)

    def has(self, value: Any) -> bool:
        """Whether it can have this very value; one without end has no value for certain."""
        if self.kind == "subset":
            chosen = [each for each in self.values if isinstance(value, list) and each in value]
            return chosen == value and len(chosen) in self.sizes
        if self.kind in RANGES:
            if self.kind in ENDLESS or type(value) not in (int, float) or not math.isfinite(value):
                return False
            low, high, step = self._steps
            asked = Fraction(str(value))
            return low <= asked <= high and (asked - low) % step == 0
        return is_one_of(value, self.values)

    def at_random(self, chance: random.Random) -> Any:
        """Each value, of loguniform each order of magnitude, is as likely as any other."""
        if self.kind == "subset":
            return self.ordered(chance.sample(self.values, self._size(chance.randrange(self.count or 1))))
        if self.kind not in ENDLESS:
            return self.step(chance.randrange(self.count or 0)) if self.kind in RANGES else chance.choice(self.values)
        low, high = self.values
        if self.kind == "uniform":
            return chance.uniform(low, high)
        return min(max(math.exp(chance.uniform(math.log(low), math.log(high))), low), high)

    def _size(self, number: int) -> int:
        """Of the subset of this number, smaller ones first."""
        ends = accumulate(math.comb(len(self.values), size) for size in self.sizes)
        return next(size for size, end in zip(self.sizes, ends, strict=True) if number < end)

    def ordered(self, elements: Sequence[Any]) -> list[Any]:
        """A subset of these, in the order of all."""
        return [each for each in self.values if each in elements]

    def probes(self) -> list[Any]:
        """Values that the config must accept if it is to accept all: ends, all choices, a subset's elements."""
        if self.kind == "subset":
            least, most = self.sizes[0], self.sizes[-1]
            few = [list(self.values[at : at + max(least, 1)]) for at in range(len(self.values))]
            found = [[]] * (least == 0) + few + [list(self.values[:most])]
            return [each for number, each in enumerate(found) if self.has(each) and each not in found[:number]]
        if self.kind in ENDLESS:
            return [float(value) for value in self.values]
        if self.kind in RANGES:
            return [self.step(0), self.step((self.count or 1) - 1)]
        return list(self.values)

    def describe(self) -> str:
        inside = json.dumps(list(self.values))
        sizes = f", {self.sizes[0]} to {self.sizes[-1]} of them" if self.kind == "subset" else ""
        condition = "".join(f", when {key} is {' or '.join(map(str, values))}" for key, values in self.when)
        return f"{self.key}: {self.kind} {inside}{sizes}{condition}"

    @property
    def _steps(self) -> tuple[Fraction, Fraction, Fraction]:
        """A range's low and high end and its step: exactly what was written."""
        low, high, *step = (Fraction(str(value)) for value in self.values)
        return low, high, *(step or [Fraction(1)])  # type: ignore[return-value]


@dataclass(frozen=True)
class Space:
    """Parameters as the file has them, and the config and number of trials that it suggests.

    `base`: the values of the config's other keys, which conditions may be on.
    """

    config: str
    trials: int
    parameters: tuple[Parameter, ...]
    base: Mapping[str, Any] = field(default_factory=dict)

    @property
    def constants(self) -> dict[str, Any]:
        """What every trial has."""
        return {each.key: each.values[0] for each in self.parameters if each.kind == "const" and not each.when}

    @cached_property
    def ordered(self) -> tuple[Parameter, ...]:
        """Each after those that its conditions are on. CycleError if they go round in a circle."""
        by_key = {parameter.key: parameter for parameter in self.parameters}
        named = {key: [each for each, _ in by_key[key].when if each in by_key] for key in by_key}
        return tuple(by_key[key] for key in TopologicalSorter(named).static_order())

    @cached_property
    def live(self) -> tuple[Parameter, ...]:
        """Those that can exist over this base, each after those that its conditions are on."""
        found: dict[str, Parameter] = {}
        keys = {parameter.key for parameter in self.parameters}
        for parameter in self.ordered:
            if all(key in found if key in keys else self._holds(key, values) for key, values in parameter.when):
                found[parameter.key] = parameter
        return tuple(found.values())

    def _holds(self, key: str, values: tuple[Any, ...]) -> bool:
        return key in self.base and is_one_of(self.base[key], values)

    def size(self) -> int | None:
        """How many different draws there are; None: there is no end to them."""
        if any(parameter.count is None for parameter in self.live):
            return None
        return _ways(self.live, self.base, _asked_for(self.live), {})

    @cached_property
    def grids(self) -> "Space":
        """The part that goes through its values in turn: grids and constants.

        A condition on what is drawn is left out: whether it holds is only known with the draw.
        """
        kept = [parameter for parameter in self.live if parameter.kind in ("grid", "const")]
        known = {*(parameter.key for parameter in kept), *self.base}
        parts = (replace(each, when=tuple(when for when in each.when if when[0] in known)) for each in kept)
        return replace(self, parameters=tuple(parts))


def exists(parameter: Parameter, drawn: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether a draw that has come so far has this parameter.

    A condition is on a parameter of the draw, which must itself exist in it, or on a key of the `base` config as that
    stands, whatever the draw makes of it.
    """
    return all(is_one_of(drawn.get(key, base.get(key, _OTHER)), values) for key, values in parameter.when)


def is_one_of(value: Any, values: Sequence[Any]) -> bool:
    """As YAML means it: true is not 1."""
    return any(each == value and isinstance(each, bool) == isinstance(value, bool) for each in values)


def _asked_for(parameters: Sequence[Parameter]) -> dict[str, list[Any]]:
    """By key, the different values that conditions ask for."""
    found: dict[str, list[Any]] = {}
    for key, values in chain.from_iterable(parameter.when for parameter in parameters):
        known = found.setdefault(key, [])
        known += [value for number, value in enumerate(values) if not is_one_of(value, [*known, *values[:number]])]
    return found


def _ways(
    parameters: Sequence[Parameter], base: Mapping[str, Any], asked_for: Mapping[str, list[Any]], drawn: dict[str, Any]
) -> int:
    """To draw the rest. Only values that conditions ask for are told apart, so that large ranges are no long work."""
    if not parameters:
        return 1
    first, rest = parameters[0], parameters[1:]
    if not exists(first, drawn, base):
        return _ways(rest, base, asked_for, drawn)
    special = [value for value in asked_for.get(first.key, ()) if first.has(value)]
    others = (first.count or 0) - len(special)
    cases = [(1, value) for value in special] + ([(others, _OTHER)] if others else [])
    return sum(times * _ways(rest, base, asked_for, {**drawn, first.key: value}) for times, value in cases)


def overrides(values: Mapping[str, Any]) -> list[str]:
    """As a command line has them after --set."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]
