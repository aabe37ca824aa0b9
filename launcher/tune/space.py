"""A search space: YAML to typed parameters whose keys are dotted config names, checked against the config."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.config import load_config
from fmfsd.config.strict_yaml import Document, read_document
from fmfsd.errors import ConfigError, Problem

RANGES = ("uniform", "loguniform", "quniform", "int")
LISTS = ("choice", "grid")
KINDS = (*RANGES, *LISTS, "subset", "const")


@dataclass(frozen=True)
class Parameter:
    """One thing that may vary. `values`: a range's ends (and step), the choices, a subset's elements, or the constant.

    `least` and `most` bound the size of a subset; `when` are config keys and the values for which the parameter exists.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    least: int = 1
    most: int | None = None
    when: tuple[tuple[str, Any], ...] = ()

    def probes(self) -> list[Any]:
        """Values that the config must accept if it is to accept all."""
        if self.kind == "subset":
            return [[element] for element in self.values] + [list(self.values)]
        return list(self.values[:2] if self.kind in RANGES else self.values)

    def describe(self) -> str:
        inside = json.dumps(list(self.values))
        sizes = f", {self.least} to {self.most or len(self.values)} of them" if self.kind == "subset" else ""
        condition = "".join(f", when {key} is {value}" for key, value in self.when)
        return f"{self.key}: {self.kind} {inside}{sizes}{condition}"


@dataclass(frozen=True)
class Space:
    """Parameters, and the config and number of trials that the file suggests."""

    config: str
    trials: int
    parameters: tuple[Parameter, ...]


def read_space(path: Path, *, config: str | None = None) -> Space:
    """The space in `path`, over `config` or the file's own. ConfigError with everything that is wrong, with lines."""
    document = read_document(path)
    content = document.content if isinstance(document.content, dict) else {}
    problems = list(_frame_problems(document, content))
    parameters: list[Parameter] = []
    for key, spec in (content.get("parameters") or {}).items() if not problems else ():
        where = document.where(("parameters", key))
        try:
            parameters.append(_parameter(key, spec))
        except ValueError as error:
            problems.append(Problem(where, f"{key}: {error}"))
    base = config or content.get("config", "cifar100-resnet18")
    problems += [] if problems else list(_refused(document, base, parameters))
    if problems:
        raise ConfigError(problems)
    return Space(base, content.get("trials", 1), tuple(parameters))


def _frame_problems(document: Document, content: dict[str, Any]) -> Iterator[Problem]:
    for key in content:
        if key not in ("config", "trials", "parameters"):
            yield Problem(document.where((key,)), f"unknown key {key}; a space has config, trials, parameters")
    if not isinstance(content.get("config", ""), str):
        yield Problem(document.where(("config",)), "config: expected a preset's name or a file")
    if type(content.get("trials", 1)) is not int or content.get("trials", 1) < 1:
        yield Problem(document.where(("trials",)), f"trials: expected a positive number, found {content['trials']!r}")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        yield Problem(document.name, "parameters: expected keys and what they may be; there is nothing to vary")


def _parameter(key: str, spec: Any) -> Parameter:
    """ValueError if `spec` is no {kind: values}, with an optional `when`."""
    if not isinstance(spec, dict):
        raise ValueError(f"expected {{kind: values}}, as in {{uniform: [0, 1]}}, found {spec!r}")
    condition = spec.get("when", {})
    kinds = [kind for kind in spec if kind != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, found {', '.join(kinds) or 'nothing'}")
    if not isinstance(condition, dict):
        raise ValueError(f"when: expected config keys and values, found {condition!r}")
    kind, value = kinds[0], spec[kinds[0]]
    when = tuple(condition.items())
    if kind == "subset":
        return _subset(key, value, when)
    if kind == "const":
        return Parameter(key, kind, (value,), when=when)
    values = _range(kind, value) if kind in RANGES else _listed(value)
    return Parameter(key, kind, values, when=when)


def _range(kind: str, value: Any) -> tuple[Any, ...]:
    count = 3 if kind == "quniform" else 2
    numbers = isinstance(value, list) and all(type(each) in (int, float) for each in value)
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


def _listed(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of values, found {value!r}")
    if repeated := [each for number, each in enumerate(value) if each in value[:number]]:
        raise ValueError(f"{repeated[0]!r} stands there more than once")
    return tuple(value)


def _subset(key: str, value: Any, when: tuple[tuple[str, Any], ...]) -> Parameter:
    if not isinstance(value, dict) or not set(value) <= {"of", "min", "max"}:
        raise ValueError(f"subset: expected {{of: [...], min: N, max: N}}, found {value!r}")
    elements = _listed(value.get("of"))
    least, most = value.get("min", 1), value.get("max", len(elements))
    if type(least) is not int or type(most) is not int or not 0 <= least <= most <= len(elements):
        raise ValueError(f"subset: min {least} and max {most} do not fit {len(elements)} elements")
    return Parameter(key, "subset", elements, least, most, when)


def _refused(document: Document, base: str, parameters: list[Parameter]) -> Iterator[Problem]:
    """What the config would refuse of each parameter's values under its `when`, the others being as in `base`."""
    load_config(base)
    for parameter in parameters:
        where = document.where(("parameters", parameter.key))
        conditions = [f"{key}={json.dumps(value)}" for key, value in parameter.when]
        for probe in parameter.probes():
            try:
                load_config(base, [*conditions, f"{parameter.key}={json.dumps(probe)}"])
            except ConfigError as error:
                yield Problem(where, "; ".join(problem.message for problem in error.problems))
                break
