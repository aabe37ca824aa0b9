"""Samplers of Optuna. Each draw uses a new study, filled with all known trials, and a sampler with its own seed."""

import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from launcher.config.launch_config import TuneOptions
from launcher.tune.records.history import Trial
from launcher.tune.sampling.optuna_params import (
    from_optuna_params,
    suggest,
    to_distributions,
    to_optuna_params,
    to_optuna_result,
)
from launcher.tune.sampling.sampler import Draw
from launcher.tune.space.draw import grid_values, sort_by_file_order, trial_rng
from launcher.tune.space.parameters import Parameter, Space, is_active

POPULATION_SIZE = 20
"""Size of a generation; Optuna's default of 50 would be a whole sweep of the usual size."""
MAX_TRIES = 100
_TRIES_OF = {"gp": 3}
"""A draw from a Gaussian process takes about a second."""
_NAME = "search"


class OptunaSampler:
    """Draws with a sampler of Optuna. A draw depends only on the seed, the trial's number and the reported results.

    The ledger stores the values of each draw and the sampler's attributes, such as the generation of a genetic search.
    CMA-ES stores a pickled object, which must not be loaded from a ledger: its draws are repeated instead
    (`ReplayingOptunaSampler`).
    """

    def __init__(self, space: Space, options: TuneOptions) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._options = space, options
        self._drawn: dict[int, FrozenTrial] = {}
        self._ended: dict[int, FrozenTrial] = {}
        self._study_attrs: dict[str, Any] = {}

    def draw(self, number: int) -> Draw:
        values, trial_attrs, study_attrs = self._sample(number, self._ended)
        memory = {"trial": trial_attrs, "study": study_attrs}
        self._store(number, values, memory)
        return Draw(values, {name: attrs for name, attrs in memory.items() if attrs})

    def report(self, trial: Trial) -> None:
        drawn = self._drawn[trial.number]
        self._ended[trial.number] = create_trial(
            params=drawn.params,
            distributions=drawn.distributions,
            system_attrs=drawn.system_attrs,
            **to_optuna_result(trial, self._options.metrics),
        )

    def restore(self, trial: Trial) -> None:
        self._store(trial.number, trial.values, trial.sampler_state)
        if trial.state != "asked":
            self.report(trial)

    def _store(self, number: int, values: Mapping[str, Any], memory: Mapping[str, Any]) -> None:
        params, distributions = to_optuna_params(self._space, values)
        trial_attrs = dict(memory.get("trial", {}))
        self._study_attrs.update(memory.get("study", {}))
        self._drawn[number] = create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, system_attrs=trial_attrs
        )

    def _sample(
        self, number: int, ended: Mapping[int, FrozenTrial]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Return the values of a draw, and the new attributes that the sampler has set on trial and study."""
        storage, fixed = InMemoryStorage(), grid_values(self._space, number)
        directions = [StudyDirection[f"{mode}imize".upper()] for mode in self._options.modes]
        study_id = storage.create_new_study(directions, _NAME)
        for name, attr in self._study_attrs.items():
            storage.set_study_system_attr(study_id, name, attr)
        for known in sorted(self._drawn):
            if known < number:
                storage.create_new_trial(study_id, template_trial=ended.get(known, self._drawn[known]))
        study = optuna.load_study(study_name=_NAME, storage=storage, sampler=self._build_sampler(number, fixed))
        values = self._suggest_allowed(study, number)
        study_attrs = storage.get_study_system_attrs(study_id)
        new_attrs = {name: attr for name, attr in study_attrs.items() if self._study_attrs.get(name) != attr}
        return values, _attrs_to_store(storage.get_all_trials(study_id, deepcopy=False)[-1].system_attrs), new_attrs

    def _suggest_allowed(self, study: optuna.Study, number: int) -> dict[str, Any]:
        """Suggest values until all subsets have allowed sizes; repair the last ones if none had."""
        for _ in range(_TRIES_OF.get(self._options.search, MAX_TRIES)):
            trial = study.ask()
            values = self._suggest(trial)
            if all(len(values[each.key]) in each.sizes for each in _subsets(self._space, values)):
                return values
            study.tell(trial, state=TrialState.FAIL)
        return repair_subset_sizes(self._space, values, seed=self._options.seed, number=number)

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for parameter in self._space.reachable:
            if is_active(parameter, drawn, self._space.base):
                params = {name: suggest(trial, name, each) for name, each in to_distributions(parameter).items()}
                drawn[parameter.key] = from_optuna_params(parameter, params)
        return sort_by_file_order(self._space, drawn)

    def _build_sampler(self, number: int, fixed: Mapping[str, Any]) -> BaseSampler:
        seed = trial_rng(self._options.seed, number).getrandbits(32)
        enumerated = (each.key for each in self._space.reachable if each.kind == "grid" and each.key in fixed)
        params = {key: json.dumps(fixed[key]) for key in enumerated}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = _build_sampler(self._options, self._space, seed)
            return PartialFixedSampler(params, sampler) if params else sampler


class ReplayingOptunaSampler(OptunaSampler):
    """Restores its state by repeating all draws; the ledger stores which results were new at each draw."""

    def __init__(self, space: Space, options: TuneOptions) -> None:
        super().__init__(space, options)
        self._used: set[int] = set()

    def draw(self, number: int) -> Draw:
        new = sorted(set(self._ended) - self._used)
        self._used.update(new)
        draw = super().draw(number)
        return Draw(draw.values, {"new": new})

    def restore(self, trial: Trial) -> None:
        self._used.update(trial.sampler_state.get("new", ()))
        used = {number: self._ended[number] for number in self._used if number in self._ended}
        _, trial_attrs, study_attrs = self._sample(trial.number, used)
        self._store(trial.number, trial.values, {"trial": trial_attrs, "study": study_attrs})
        if trial.state != "asked":
            self.report(trial)


def _build_sampler(options: TuneOptions, space: Space, seed: int) -> BaseSampler:
    if options.search == "tpe":
        # with several metrics each parameter is sampled independently, which is Optuna's default
        grouped = len(options.metrics) == 1 and any(parameter.when for parameter in space.reachable)
        return TPESampler(seed=seed, group=grouped)
    if options.search == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    if options.search == "cmaes":
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if options.search == "qmc":
        independent = RandomSampler(seed=seed)  # the sequence itself has the seed of the sweep
        return QMCSampler(
            scramble=True, seed=options.seed, independent_sampler=independent, warn_independent_sampling=False
        )
    genetic = NSGAIISampler if options.search == "nsga2" else NSGAIIISampler
    return genetic(seed=seed, population_size=POPULATION_SIZE)


def repair_subset_sizes(space: Space, values: Mapping[str, Any], *, seed: int, number: int) -> dict[str, Any]:
    """Return the values with allowed subset sizes: add or remove random elements as needed."""
    rng, result = trial_rng(seed, number), dict(values)
    for parameter in _subsets(space, values):
        chosen = values[parameter.key]
        others = [each for each in parameter.values if each not in chosen]
        least, most = parameter.sizes[0], parameter.sizes[-1]
        added = rng.sample(others, max(least - len(chosen), 0))
        result[parameter.key] = parameter.sort_elements([*rng.sample(chosen, min(len(chosen), most)), *added])
    return result


def _subsets(space: Space, values: Mapping[str, Any]) -> Iterable[Parameter]:
    return (each for each in space.reachable if each.kind == "subset" and each.key in values)


def _attrs_to_store(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes without those that matter only while the trial is drawn, to parallel workers of Optuna."""
    return {name: attr for name, attr in attrs.items() if ":relative_params" not in name}
