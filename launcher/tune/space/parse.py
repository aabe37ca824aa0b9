"""Parses the YAML of a search space into parameters, and collects all syntax problems."""

import math
from collections.abc import Iterator
from typing import Any

from fmfsd.config.strict_yaml import Document
from fmfsd.errors import Problem
from launcher.tune.space.parameters import KINDS, RANGES, Parameter, is_one_of

Conditions = tuple[tuple[str, tuple[Any, ...]], ...]


def find_top_level_problems(document: Document) -> Iterator[Problem]:
    """Yield the problems of the file's top level."""
    content = document.content if isinstance(document.content, dict) else {}
    for key in content:
        if key not in ("config", "trials", "parameters"):
            yield Problem(document.locate((key,)), f"unknown key {key}; known keys: config, trials, parameters")
    if not isinstance(content.get("config", ""), str):
        yield Problem(document.locate(("config",)), "config: expected the name of a preset or a file")
    if type(content.get("trials", 1)) is not int or content.get("trials", 1) < 1:
        yield Problem(document.locate(("trials",)), f"trials: expected a positive number, found {content['trials']!r}")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        yield Problem(document.name, "parameters: expected config keys and their ranges or choices, found none")


def parse_parameters(document: Document) -> tuple[list[Parameter], list[Problem]]:
    """Return the parameters that could be parsed, and the problems of the others."""
    parsed: list[Parameter] = []
    problems: list[Problem] = []
    content = document.content.get("parameters") if isinstance(document.content, dict) else None
    for key, spec in content.items() if isinstance(content, dict) else ():
        try:
            parsed.append(_parse_parameter(key, spec))
        except ExceptionGroup as errors:
            where = document.locate(("parameters", key))
            problems += [Problem(where, f"{key}: {error}") for error in errors.exceptions]
    return parsed, problems


def _parse_parameter(key: str, spec: Any) -> Parameter:
    """Parse {kind: values} with an optional `when`. Raise an ExceptionGroup of ValueErrors if `spec` is invalid."""
    if not isinstance(spec, dict):
        raise ExceptionGroup(
            "", [ValueError(f"expected {{kind: values}}, such as {{uniform: [0, 1]}}, found {spec!r}")]
        )
    errors: list[ValueError] = []
    when: Conditions = ()
    try:
        when = _parse_conditions(spec.get("when", {}))
    except ValueError as error:
        errors.append(error)
    try:
        parameter = _parse_kind(key, {kind: value for kind, value in spec.items() if kind != "when"}, when)
    except ValueError as error:
        errors.append(error)
    if errors:
        raise ExceptionGroup("", errors)
    return parameter


def _parse_conditions(value: Any) -> Conditions:
    """Parse conditions; a list means any of its values."""
    if not isinstance(value, dict):
        raise ValueError(f"when: expected config keys and values, found {value!r}")
    if empty := [key for key, each in value.items() if each == []]:
        raise ValueError(f"when: {empty[0]}: expected a value or a list of values, found []")
    return tuple((key, _parse_list(each) if isinstance(each, list) else (each,)) for key, each in value.items())


def _parse_kind(key: str, spec: dict[str, Any], when: Conditions) -> Parameter:
    if len(spec) != 1 or not set(spec) <= set(KINDS):
        raise ValueError(f"expected one of {', '.join(KINDS)}, found {', '.join(spec) or 'nothing'}")
    ((kind, value),) = spec.items()
    if kind == "subset":
        return _parse_subset(key, value, when)
    if kind == "const":
        return Parameter(key, kind, (value,), when=when)
    return Parameter(key, kind, _parse_range(kind, value) if kind in RANGES else _parse_list(value), when=when)


def _parse_range(kind: str, value: Any) -> tuple[Any, ...]:
    count = 3 if kind == "quniform" else 2
    numbers = isinstance(value, list) and all(type(each) in (int, float) and math.isfinite(each) for each in value)
    if not numbers or len(value) != count or (kind == "int" and any(type(each) is not int for each in value)):
        raise ValueError(f"{kind}: expected [low, high{', step' if count == 3 else ''}], found {value!r}")
    low, high = value[:2]
    if low >= high:
        raise ValueError(f"{kind}: low {low} is not below high {high}")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"loguniform: low {low} is not above 0")
    if count == 3 and not 0 < value[2] <= high - low:
        raise ValueError(f"quniform: step {value[2]} does not fit between {low} and {high}")
    return tuple(value)


def _parse_list(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of values, found {value!r}")
    if repeated := [each for number, each in enumerate(value) if is_one_of(each, value[:number])]:
        raise ValueError(f"{repeated[0]!r} is listed more than once")
    return tuple(value)


def _parse_subset(key: str, value: Any, when: Conditions) -> Parameter:
    if not isinstance(value, dict) or not set(value) <= {"of", "min", "max"}:
        raise ValueError(f"subset: expected {{of: [...], min: N, max: N}}, found {value!r}")
    elements = _parse_list(value.get("of"))
    least, most = value.get("min", 1), value.get("max", len(elements))
    if type(least) is not int or type(most) is not int or not 0 <= least <= most <= len(elements):
        raise ValueError(f"subset: min {least} and max {most} do not fit {len(elements)} elements")
    return Parameter(key, "subset", elements, least, most, when)
