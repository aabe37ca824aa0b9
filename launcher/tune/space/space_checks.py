"""Validation of a parsed search space: its keys, its conditions, and values that the config rejects."""

import json
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError
from itertools import islice, product
from typing import Any

from fmfsd.config import load_config
from fmfsd.config.resume_rules import flatten_keys
from fmfsd.config.strict_yaml import Document
from fmfsd.errors import ConfigError, Problem
from launcher.tune.space.draw import draw_random, enumerate_draws
from launcher.tune.space.parameters import Parameter, Space, format_overrides, is_active, is_one_of

SAMPLE_SIZE = 100
"""Number of whole draws that are validated; 0.4 ms each."""
_MAX_REPORTED = 3
_PINNED_DRAWS = 20

_SAME_DATA = "all trials train and are evaluated on the samples of one prepared data set"
_NO_EFFECT = "it has no effect on training"
UNSEARCHABLE_KEYS = {
    "data.name": _SAME_DATA,
    "data.classes": _SAME_DATA,
    "data.root": _SAME_DATA,
    "data.size": _SAME_DATA,
    "data.shards": _SAME_DATA,
    "data.valid": _SAME_DATA,
    "train.init_from": "all trials start from the same weights",
    "train.evaluate_every": "trials are compared after the same epochs",
    "train.evaluate_test": "a sweep evaluates the test set only for its winners",
    "train.evaluate_batch": _NO_EFFECT,
    "train.log_every": _NO_EFFECT,
    "checkpoint.every_epochs": _NO_EFFECT,
    "checkpoint.every_steps": _NO_EFFECT,
    "checkpoint.every_minutes": _NO_EFFECT,
    "checkpoint.keep": _NO_EFFECT,
}
"""Keys that would make trials incomparable, or that have no effect, with the reason."""


@dataclass(frozen=True)
class BaseConfig:
    """The base config of a space, and all its values by dotted key."""

    source: str
    overrides: tuple[str, ...]
    values: Mapping[str, Any]

    @classmethod
    def load(cls, source: str, overrides: Sequence[str]) -> "BaseConfig":
        """Load the config. Raise ConfigError if it is invalid."""
        config = load_config(source, overrides)
        return cls(source, tuple(overrides), dict(flatten_keys(config.model_dump(mode="json"))))

    def attach_to(self, space: Space) -> Space:
        """Return `space` with the values of this config that its conditions can refer to."""
        searched = {parameter.key for parameter in space.parameters}
        return replace(space, base={key: value for key, value in self.values.items() if key not in searched})

    def find_problems(self, values: Mapping[str, Any]) -> list[Problem]:
        """Return the problems that the config has with these values; none if it accepts them."""
        try:
            load_config(self.source, [*self.overrides, *format_overrides(values)])
        except ConfigError as error:
            return error.problems
        return []


def find_parameter_problems(
    document: Document, space: Space, base: BaseConfig, *, unparsed: Collection[str]
) -> Iterator[Problem]:
    """Yield the problems of each parameter alone. `unparsed`: keys of parameters that could not be parsed."""
    valid: list[Parameter] = []
    for parameter in space.parameters:
        problems = [
            *_key_problems(document, parameter, base),
            *_condition_problems(document, parameter, space, base, unparsed),
        ]
        yield from problems
        valid += [] if problems else [parameter]
    if cycle := _find_cycle(space):
        where = document.locate(("parameters", cycle[0], "when"))
        yield Problem(where, f"{' <- '.join(cycle)}: the conditions form a cycle")
        return
    for parameter in valid:
        yield from _value_problems(document, parameter, space, base)
    if len(valid) == len(space.parameters) > 0 and not unparsed and space.size() == 1:
        yield Problem(
            document.locate(("parameters",)), f"nothing to vary over {base.source}: the space has only one draw"
        )


def _find_cycle(space: Space) -> list[str]:
    """Return the keys of a cycle of conditions, or an empty list."""
    try:
        assert len(space.topological_order) == len(space.parameters)
    except CycleError as error:
        return [str(key) for key in error.args[1]]
    return []


def _key_problems(document: Document, parameter: Parameter, base: BaseConfig) -> Iterator[Problem]:
    key, where = parameter.key, document.locate(("parameters", parameter.key))
    if inside := [name for name in base.values if name.startswith(f"{key}.")]:
        yield Problem(where, f"{key}: is a section: name one of its keys, such as {inside[0]}")
    if key in UNSEARCHABLE_KEYS:
        yield Problem(where, f"{key}: can not be searched: {UNSEARCHABLE_KEYS[key]}")
    for text in base.overrides:
        if f"{key}.".startswith(f"{text.partition('=')[0]}."):
            yield Problem(where, f"{key}: both the space and --set {text} set it: remove one of them")


def _condition_problems(
    document: Document, parameter: Parameter, space: Space, base: BaseConfig, unread: Collection[str]
) -> Iterator[Problem]:
    others = {each.key: each for each in space.parameters}
    for key, values in parameter.when:
        where = document.locate(("parameters", parameter.key, "when", key))
        if key in others:
            for value in values:
                if not others[key].contains(value):
                    never = f"when: {key} is never {json.dumps(value)}; it is {others[key].describe()}"
                    yield Problem(where, f"{parameter.key}: {never}")
        elif key not in unread:
            for message in _never_values(base, key, values):
                yield Problem(where, f"{parameter.key}: when: {message}")


def _never_values(base: BaseConfig, key: str, values: Sequence[Any]) -> list[str]:
    """Return the config's messages if this key can have none of these values."""
    if key in base.values and is_one_of(base.values[key], values):
        return []
    rejections = [base.find_problems({key: value}) for value in values]
    return [problem.message for problem in rejections[0]] if all(rejections) else []


def _value_problems(document: Document, parameter: Parameter, space: Space, base: BaseConfig) -> Iterator[Problem]:
    """Yield values that the config rejects in every tested draw."""
    where = document.locate(("parameters", parameter.key))
    context = _activating_values(parameter, space)
    if context is None:
        yield Problem(where, f"{parameter.key}: when: these conditions never hold together")
        return
    for probe in parameter.values_to_check():
        pinned = {**context, parameter.key: probe}
        problems = base.find_problems({**_constants(space, pinned), **pinned})
        if problems and not _fits_somewhere(pinned, parameter, space, base):
            yield Problem(where, "; ".join(problem.message for problem in problems))
            return


def _activating_values(parameter: Parameter, space: Space) -> dict[str, Any] | None:
    """Return values of other parameters and of base keys with which this parameter is active, or None."""
    others = {each.key: each for each in space.parameters}
    needed, allowed, pending = [parameter], dict[str, list[Any]](), [parameter]
    while pending:
        for key, values in pending.pop().when:
            allowed.setdefault(key, []).extend(values)
            if key in others and others[key] not in needed:
                needed.append(others[key])
                pending.append(others[key])
    candidates = (dict(zip(allowed, values, strict=True)) for values in islice(product(*allowed.values()), 10_000))
    return next((values for values in candidates if all(is_active(each, values, space.base) for each in needed)), None)


def _constants(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    constants = (each for each in space.reachable if each.kind == "const" and is_active(each, drawn, space.base))
    return {parameter.key: parameter.values[0] for parameter in constants}


def _fits_somewhere(pinned: Mapping[str, Any], parameter: Parameter, space: Space, base: BaseConfig) -> bool:
    """Return whether one of a few draws with these values is valid: then only combinations are invalid."""
    if parameter not in space.reachable:
        return not any(problem.message.startswith(f"{parameter.key}:") for problem in base.find_problems(pinned))
    draws = (draw_random(space, random.Random(number), pinned) for number in range(_PINNED_DRAWS))
    return not all(base.find_problems(draw) for draw in draws)


def find_draw_problems(document: Document, space: Space, base: BaseConfig) -> Iterator[Problem]:
    """Yield sampled draws that the config rejects, each reduced to the values that cause the rejection."""
    reported: set[str] = set()
    for draw in _sample(space):
        for problem in base.find_problems(draw)[:1]:
            if problem.message in reported or len(reported) == _MAX_REPORTED:
                continue
            reported.add(problem.message)
            minimal = _minimize(draw, problem.message, base)
            where = document.locate(("parameters", list(minimal)[-1]))
            values = ", ".join(f"{key} {json.dumps(value)}" for key, value in minimal.items())
            yield Problem(where, f"{problem.message}; found with {values}: exclude this combination with a `when`")


def _sample(space: Space) -> Iterable[Mapping[str, Any]]:
    """Return all draws if they are few, else random ones."""
    size, rng = space.size(), random.Random(0)
    if size is not None and size <= SAMPLE_SIZE:
        return enumerate_draws(space)
    return (draw_random(space, rng) for _ in range(SAMPLE_SIZE))


def _minimize(draw: Mapping[str, Any], message: str, base: BaseConfig) -> dict[str, Any]:
    """Return the draw without the values that do not contribute to this rejection."""
    minimal = dict(draw)
    for key in draw:
        fewer = {each: value for each, value in minimal.items() if each != key}
        if fewer and any(problem.message == message for problem in base.find_problems(fewer)):
            minimal = fewer
    return minimal
