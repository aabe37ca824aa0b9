"""Parameters, values and results in Optuna's words, and back."""

import json
import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from launcher.tune.records.history import Trial
from launcher.tune.space.parameters import ENDLESS, Parameter, Space


def params_of(space: Space, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """A draw as Optuna has it, by Optuna's names: a subset is a boolean an element, a choice is JSON."""
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for parameter in space.live:
        if parameter.key in values:
            found = distributions_of(parameter)
            params |= {name: _param(parameter, values[parameter.key], name) for name in found}
            distributions |= found
    return params, distributions


def distributions_of(parameter: Parameter) -> dict[str, BaseDistribution]:
    """By Optuna's names; empty if there is but one value."""
    if parameter.count == 1:
        return {}
    if parameter.kind == "subset":
        return {_name(parameter, element): CategoricalDistribution((False, True)) for element in parameter.values}
    return {parameter.key: _distribution(parameter)}


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.count is None:
        low, high = map(float, parameter.values)
        return FloatDistribution(low, high, log=parameter.kind == "loguniform")
    if parameter.kind == "int":
        return IntDistribution(*parameter.values)
    if parameter.kind == "quniform":
        low, high = parameter.step(0), parameter.step(parameter.count - 1)
        return FloatDistribution(float(low), float(high), step=float(parameter.values[2]))
    return CategoricalDistribution([json.dumps(value) for value in parameter.values])


def _name(parameter: Parameter, element: Any) -> str:
    return f"{parameter.key}:{element}"


def _param(parameter: Parameter, value: Any, name: str) -> Any:
    if parameter.kind == "subset":
        return any(_name(parameter, element) == name for element in value)
    if parameter.kind == "int":
        return value
    return float(value) if parameter.kind in (*ENDLESS, "quniform") else json.dumps(value)


def value_of(parameter: Parameter, params: Mapping[str, Any]) -> Any:
    """The config's value of what Optuna suggests for a parameter; the only one if that is nothing."""
    if not params:
        return next(iter(parameter.each()))
    if parameter.kind == "subset":
        return [element for element in parameter.values if params[_name(parameter, element)]]
    taken = params[parameter.key]
    if parameter.kind == "quniform":
        low, _, step = parameter.values
        return parameter.step(round((taken - low) / step))
    return taken if parameter.kind in (*ENDLESS, "int") else json.loads(taken)


def suggested(asked: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """What Optuna takes for one of its parameters."""
    if isinstance(distribution, CategoricalDistribution):
        return asked.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return asked.suggest_int(name, distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    return asked.suggest_float(name, low, high, step=distribution.step, log=distribution.log)


def result_of(trial: Trial, metrics: tuple[str, ...]) -> dict[str, Any]:
    """The end of a trial in Optuna's words. Without all metrics, as numbers, it has failed; Optuna knows no stopped
    trials of several metrics, so these have, too."""
    values = [trial.metrics.get(name, math.nan) for name in metrics]
    if trial.state == "finished" and all(map(math.isfinite, values)):
        return {"state": TrialState.COMPLETE, "values": values}
    if trial.state == "pruned" and len(metrics) == 1:
        reports = {epoch: found.get(metrics[0], math.nan) for epoch, found in trial.reports.items()}
        finite = {epoch: value for epoch, value in reports.items() if math.isfinite(value)}
        return {"state": TrialState.PRUNED, "intermediate_values": finite}
    return {"state": TrialState.FAIL}
