"""Conversion of parameters, values and results to Optuna's types and back."""

import json
import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from launcher.tune.records.history import Trial
from launcher.tune.space.parameters import CONTINUOUS, Parameter, Space


def to_optuna_params(space: Space, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return a draw as Optuna's params and distributions: a subset is one boolean per element, a choice is JSON."""
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for parameter in space.reachable:
        if parameter.key in values:
            by_name = to_distributions(parameter)
            params |= {name: _param(parameter, values[parameter.key], name) for name in by_name}
            distributions |= by_name
    return params, distributions


def to_distributions(parameter: Parameter) -> dict[str, BaseDistribution]:
    """Return the distributions of a parameter by Optuna's names; empty if it has only one value."""
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
        low, high = parameter.value_at(0), parameter.value_at(parameter.count - 1)
        return FloatDistribution(float(low), float(high), step=float(parameter.values[2]))
    return CategoricalDistribution([json.dumps(value) for value in parameter.values])


def _name(parameter: Parameter, element: Any) -> str:
    return f"{parameter.key}:{element}"


def _param(parameter: Parameter, value: Any, name: str) -> Any:
    if parameter.kind == "subset":
        return any(_name(parameter, element) == name for element in value)
    if parameter.kind == "int":
        return value
    return float(value) if parameter.kind in (*CONTINUOUS, "quniform") else json.dumps(value)


def from_optuna_params(parameter: Parameter, params: Mapping[str, Any]) -> Any:
    """Return the config value for Optuna's params of a parameter; the only value if there are no params."""
    if not params:
        return next(iter(parameter.enumerate_values()))
    if parameter.kind == "subset":
        return [element for element in parameter.values if params[_name(parameter, element)]]
    param = params[parameter.key]
    if parameter.kind == "quniform":
        low, _, step = parameter.values
        return parameter.value_at(round((param - low) / step))
    return param if parameter.kind in (*CONTINUOUS, "int") else json.loads(param)


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Let Optuna suggest a value for one of its params."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    return trial.suggest_float(name, low, high, step=distribution.step, log=distribution.log)


def to_optuna_result(trial: Trial, metrics: tuple[str, ...]) -> dict[str, Any]:
    """Return the state and values of a trial as arguments of Optuna's `create_trial`.

    A trial without finite values of all metrics counts as failed. So does a pruned trial with several metrics, which
    Optuna does not support.
    """
    values = [trial.metrics.get(name, math.nan) for name in metrics]
    if trial.state == "finished" and all(map(math.isfinite, values)):
        return {"state": TrialState.COMPLETE, "values": values}
    if trial.state == "pruned" and len(metrics) == 1:
        reports = {epoch: reported.get(metrics[0], math.nan) for epoch, reported in trial.reports.items()}
        finite = {epoch: value for epoch, value in reports.items() if math.isfinite(value)}
        return {"state": TrialState.PRUNED, "intermediate_values": finite}
    return {"state": TrialState.FAIL}
