"""What is wrong with a search space that is well written: its keys, its conditions, and what the config refuses."""

import json
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError
from itertools import islice, product
from typing import Any

from fmfsd.config import load_config
from fmfsd.config.resume_rules import leaves
from fmfsd.config.strict_yaml import Document
from fmfsd.errors import ConfigError, Problem
from launcher.tune.space.draw import at_random, combinations
from launcher.tune.space.parameters import Parameter, Space, exists, is_one_of, overrides

SAMPLE = 100
"""Draws that are tried as a whole: 0.4 ms each."""
_MOST_SHOWN = 3
_PINNED = 20

_OTHER_SAMPLES = "all trials learn and are judged on the samples of one prepared set"
_NOT_LEARNT = "it changes nothing that is learnt"
NOT_SEARCHED = {
    "data.name": _OTHER_SAMPLES,
    "data.classes": _OTHER_SAMPLES,
    "data.root": _OTHER_SAMPLES,
    "data.size": _OTHER_SAMPLES,
    "data.shards": _OTHER_SAMPLES,
    "data.valid": _OTHER_SAMPLES,
    "train.init_from": "all trials begin at the same point",
    "train.evaluate_every": "trials are compared after the same epochs",
    "train.evaluate_test": "a search looks at the test set for its winners alone",
    "train.evaluate_batch": _NOT_LEARNT,
    "train.log_every": _NOT_LEARNT,
    "checkpoint.every_epochs": _NOT_LEARNT,
    "checkpoint.every_steps": _NOT_LEARNT,
    "checkpoint.every_minutes": _NOT_LEARNT,
    "checkpoint.keep": _NOT_LEARNT,
}
"""Keys that would make trials incomparable, or alike, and why."""


@dataclass(frozen=True)
class Base:
    """The config that a space's values are put over, with all that it says, by dotted key."""

    source: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]

    @classmethod
    def load(cls, source: str, overrides: Sequence[str]) -> "Base":
        """ConfigError if it is none."""
        config = load_config(source, overrides)
        return cls(source, tuple(overrides), dict(leaves(config.model_dump(mode="json"))))

    def under(self, space: Space) -> Space:
        """`space` with what conditions may be on, beside its parameters."""
        searched = {parameter.key for parameter in space.parameters}
        return replace(space, base={key: value for key, value in self.values.items() if key not in searched})

    def refusal(self, values: Mapping[str, Any]) -> list[Problem]:
        """What the config has against these values; nothing if it takes them."""
        try:
            load_config(self.source, [*self.overrides, *overrides(values)])
        except ConfigError as error:
            return error.problems
        return []


def own_problems(document: Document, space: Space, base: Base, *, unread: Collection[str]) -> Iterator[Problem]:
    """What is wrong with each parameter by itself. What `unread` parameters may be is not known, nor judged."""
    sound: list[Parameter] = []
    for parameter in space.parameters:
        found = [*_of_key(document, parameter, base), *_of_conditions(document, parameter, space, base, unread)]
        yield from found
        sound += [] if found else [parameter]
    if circle := _circle(space):
        where = document.where(("parameters", circle[0], "when"))
        yield Problem(where, f"{' <- '.join(circle)}: conditions that go round in a circle never hold")
        return
    for parameter in sound:
        yield from _of_values(document, parameter, space, base)
    if len(sound) == len(space.parameters) > 0 and not unread and space.size() == 1:
        yield Problem(document.where(("parameters",)), f"there is nothing to vary over {base.source}: one draw is all")


def _circle(space: Space) -> list[str]:
    """Keys of parameters, each with a condition on one beside it; empty if there is none."""
    try:
        assert len(space.ordered) == len(space.parameters)
    except CycleError as error:
        return [str(key) for key in error.args[1]]
    return []


def _of_key(document: Document, parameter: Parameter, base: Base) -> Iterator[Problem]:
    key, where = parameter.key, document.where(("parameters", parameter.key))
    if inside := [name for name in base.values if name.startswith(f"{key}.")]:
        yield Problem(where, f"{key}: is a section: name its keys, as in {inside[0]}")
    if key in NOT_SEARCHED:
        yield Problem(where, f"{key}: not to be searched: {NOT_SEARCHED[key]}")
    for text in base.overrides:
        if f"{key}.".startswith(f"{text.partition('=')[0]}."):
            yield Problem(where, f"{key}: the space and --set {text} both give it values: leave one of the two out")


def _of_conditions(
    document: Document, parameter: Parameter, space: Space, base: Base, unread: Collection[str]
) -> Iterator[Problem]:
    others = {each.key: each for each in space.parameters}
    for key, values in parameter.when:
        where = document.where(("parameters", parameter.key, "when", key))
        if key in others:
            for value in values:
                if not others[key].has(value):
                    never = f"when: {key} is never {json.dumps(value)}; it is {others[key].describe()}"
                    yield Problem(where, f"{parameter.key}: {never}")
        elif key not in unread:
            for message in _never_in(base, key, values):
                yield Problem(where, f"{parameter.key}: when: {message}")


def _never_in(base: Base, key: str, values: Sequence[Any]) -> list[str]:
    """What the config says if this key of it can have none of these values."""
    if key in base.values and is_one_of(base.values[key], values):
        return []
    refused = [base.refusal({key: value}) for value in values]
    return [problem.message for problem in refused[0]] if all(refused) else []


def _of_values(document: Document, parameter: Parameter, space: Space, base: Base) -> Iterator[Problem]:
    """Values that the config refuses in every draw that was tried."""
    where = document.where(("parameters", parameter.key))
    context = _context(parameter, space)
    if context is None:
        yield Problem(where, f"{parameter.key}: when: these conditions never hold together")
        return
    for probe in parameter.probes():
        pinned = {**context, parameter.key: probe}
        problems = base.refusal({**_constants(space, pinned), **pinned})
        if problems and not _fits_somewhere(pinned, parameter, space, base):
            yield Problem(where, "; ".join(problem.message for problem in problems))
            return


def _context(parameter: Parameter, space: Space) -> dict[str, Any] | None:
    """Values with which this parameter exists, of the base's keys too; None: there are none."""
    others = {each.key: each for each in space.parameters}
    needed, wanted, left = [parameter], dict[str, list[Any]](), [parameter]
    while left:
        for key, values in left.pop().when:
            wanted.setdefault(key, []).extend(values)
            if key in others and others[key] not in needed:
                needed.append(others[key])
                left.append(others[key])
    found = (dict(zip(wanted, values, strict=True)) for values in islice(product(*wanted.values()), 10_000))
    return next((values for values in found if all(exists(each, values, space.base) for each in needed)), None)


def _constants(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    found = (each for each in space.live if each.kind == "const" and exists(each, drawn, space.base))
    return {parameter.key: parameter.values[0] for parameter in found}


def _fits_somewhere(pinned: Mapping[str, Any], parameter: Parameter, space: Space, base: Base) -> bool:
    """Whether any of some draws with these values is a config: then only combinations are refused."""
    if parameter not in space.live:
        return not any(problem.message.startswith(f"{parameter.key}:") for problem in base.refusal(pinned))
    draws = (at_random(space, random.Random(number), pinned) for number in range(_PINNED))
    return not all(base.refusal(draw) for draw in draws)


def drawn_problems(document: Document, space: Space, base: Base) -> Iterator[Problem]:
    """Draws of a sample that the config refuses, each with the fewest values that make it do so."""
    seen: set[str] = set()
    for draw in _sample(space):
        for problem in base.refusal(draw)[:1]:
            if problem.message in seen or len(seen) == _MOST_SHOWN:
                continue
            seen.add(problem.message)
            fewest = _fewest(draw, problem.message, base)
            where = document.where(("parameters", list(fewest)[-1]))
            shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in fewest.items())
            yield Problem(where, f"{problem.message}; found with {shown}: let a `when` keep these apart")


def _sample(space: Space) -> Iterable[Mapping[str, Any]]:
    """All draws, if they are few."""
    size, chance = space.size(), random.Random(0)
    if size is not None and size <= SAMPLE:
        return combinations(space)
    return (at_random(space, chance) for _ in range(SAMPLE))


def _fewest(draw: Mapping[str, Any], message: str, base: Base) -> dict[str, Any]:
    """Without the values that this refusal does not come from."""
    kept = dict(draw)
    for key in draw:
        fewer = {each: value for each, value in kept.items() if each != key}
        if fewer and any(problem.message == message for problem in base.refusal(fewer)):
            kept = fewer
    return kept
