"""Draws that need nothing but chance or a count: at random, and each in its turn."""

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from launcher.tune.space.parameters import Space, exists


def at_random(space: Space, chance: random.Random, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A value for each parameter that exists, of `fixed` or each as likely as any other, in the file's order."""
    drawn: dict[str, Any] = {}
    known = fixed or {}
    for parameter in space.live:
        if exists(parameter, drawn, space.base):
            key = parameter.key
            drawn[key] = known[key] if key in known else parameter.at_random(chance)
    return in_order(space, drawn)


def combinations(space: Space) -> Iterator[dict[str, Any]]:
    """All draws of a space with an end; the last parameter changes first."""
    yield from (in_order(space, drawn) for drawn in _combined(space, 0, {}))


def _combined(space: Space, number: int, drawn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that begin with `drawn`, the values of the first `number` parameters."""
    if number == len(space.live):
        yield drawn
        return
    parameter = space.live[number]
    if not exists(parameter, drawn, space.base):
        yield from _combined(space, number + 1, drawn)
        return
    for value in parameter.each():
        yield from _combined(space, number + 1, {**drawn, parameter.key: value})


def grid_values(space: Space, number: int) -> dict[str, Any]:
    """What the grids and constants are in a trial, beside what else is drawn: each combination in turn, from 1 on."""
    return nth(space.grids, (number - 1) % (space.grids.size() or 1)) or {}


def nth(space: Space, number: int) -> dict[str, Any] | None:
    """One of all draws, from 0 on; None: there are not so many."""
    return next(islice(combinations(space), number, None), None)


def chance_of(seed: int, number: int) -> random.Random:
    """For one trial, whatever became of the others."""
    return random.Random(f"{seed} {number}")


def in_order(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """As the file has its parameters."""
    return {parameter.key: drawn[parameter.key] for parameter in space.parameters if parameter.key in drawn}
