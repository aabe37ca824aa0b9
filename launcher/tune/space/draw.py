"""Draws without a model: at random, and enumeration of all combinations."""

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from launcher.tune.space.parameters import Space, exists


def at_random(space: Space, rng: random.Random, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Draw a value for each active parameter, from `fixed` or at random; return them in the file's order."""
    drawn: dict[str, Any] = {}
    fixed = fixed or {}
    for parameter in space.live:
        if exists(parameter, drawn, space.base):
            key = parameter.key
            drawn[key] = fixed[key] if key in fixed else parameter.at_random(rng)
    return in_order(space, drawn)


def combinations(space: Space) -> Iterator[dict[str, Any]]:
    """Yield all draws of a finite space; the last parameter changes fastest."""
    yield from (in_order(space, drawn) for drawn in _extend(space, 0, {}))


def _extend(space: Space, number: int, drawn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all draws that extend `drawn`, the values of the first `number` parameters."""
    if number == len(space.live):
        yield drawn
        return
    parameter = space.live[number]
    if not exists(parameter, drawn, space.base):
        yield from _extend(space, number + 1, drawn)
        return
    for value in parameter.each():
        yield from _extend(space, number + 1, {**drawn, parameter.key: value})


def grid_values(space: Space, number: int) -> dict[str, Any]:
    """Return the grids' and constants' values of trial `number` (from 1): the combinations round-robin."""
    return nth(space.grids, (number - 1) % (space.grids.size() or 1)) or {}


def nth(space: Space, number: int) -> dict[str, Any] | None:
    """Return draw `number` (from 0) of all draws, or None if there are fewer."""
    return next(islice(combinations(space), number, None), None)


def chance_of(seed: int, number: int) -> random.Random:
    """Return the random generator of one trial, independent of other trials."""
    return random.Random(f"{seed} {number}")


def in_order(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the order of the parameters in the file."""
    return {parameter.key: drawn[parameter.key] for parameter in space.parameters if parameter.key in drawn}
