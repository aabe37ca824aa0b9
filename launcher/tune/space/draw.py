"""Draws without a model: at random, and enumeration of all combinations."""

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from launcher.tune.space.parameters import Space, is_active


def draw_random(space: Space, rng: random.Random, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Draw a value for each active parameter, from `fixed` or at random; return them in the file's order."""
    drawn: dict[str, Any] = {}
    fixed = fixed or {}
    for parameter in space.reachable:
        if is_active(parameter, drawn, space.base):
            key = parameter.key
            drawn[key] = fixed[key] if key in fixed else parameter.sample(rng)
    return sort_by_file_order(space, drawn)


def enumerate_draws(space: Space) -> Iterator[dict[str, Any]]:
    """Yield all draws of a finite space; the last parameter changes fastest."""
    yield from (sort_by_file_order(space, drawn) for drawn in _extend(space, 0, {}))


def _extend(space: Space, number: int, drawn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all draws that extend `drawn`, the values of the first `number` parameters."""
    if number == len(space.reachable):
        yield drawn
        return
    parameter = space.reachable[number]
    if not is_active(parameter, drawn, space.base):
        yield from _extend(space, number + 1, drawn)
        return
    for value in parameter.enumerate_values():
        yield from _extend(space, number + 1, {**drawn, parameter.key: value})


def grid_values(space: Space, number: int) -> dict[str, Any]:
    """Return the grids' and constants' values of trial `number` (from 1): the combinations round-robin."""
    return nth_draw(space.grid_part, (number - 1) % (space.grid_part.size() or 1)) or {}


def nth_draw(space: Space, number: int) -> dict[str, Any] | None:
    """Return draw `number` (from 0) of all draws, or None if there are fewer."""
    return next(islice(enumerate_draws(space), number, None), None)


def trial_rng(seed: int, number: int) -> random.Random:
    """Return the random generator of one trial, independent of other trials."""
    return random.Random(f"{seed} {number}")


def sort_by_file_order(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the order of the parameters in the file."""
    return {parameter.key: drawn[parameter.key] for parameter in space.parameters if parameter.key in drawn}
