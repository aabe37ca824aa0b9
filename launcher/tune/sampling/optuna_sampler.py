"""Optuna as the searcher: each draw asks a study that is made anew of what is known, by a sampler with its own seed."""

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
from launcher.tune.sampling.optuna_params import distributions_of, params_of, result_of, suggested, value_of
from launcher.tune.sampling.sampler import Draw
from launcher.tune.space.draw import chance_of, grid_values, in_order
from launcher.tune.space.parameters import Parameter, Space, exists

POPULATION = 20
"""Of a generation: Optuna's own 50 would be all of a search as small as ours are."""
TRIES = 100
_TRIES_OF = {"gp": 3}
"""A Gaussian process takes about a second to answer."""
_NAME = "search"


class Modelled:
    """What is drawn depends on the seed, the trial's number and what has been told; of several metrics on all.

    A ledger holds each draw's values and what the sampler has noted beside them, as the generation of a genetic search.
    CMA-ES notes a pickled object, which no ledger may bring in: its draws are asked again instead (`Replayed`).
    """

    def __init__(self, space: Space, options: TuneOptions) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._options = space, options
        self._drawn: dict[int, FrozenTrial] = {}
        self._ended: dict[int, FrozenTrial] = {}
        self._notes: dict[str, Any] = {}

    def draw(self, number: int) -> Draw:
        values, notes, of_study = self._ask(number, self._ended)
        memory = {"trial": notes, "study": of_study}
        self._remember(number, values, memory)
        return Draw(values, {name: noted for name, noted in memory.items() if noted})

    def tell(self, trial: Trial) -> None:
        drawn = self._drawn[trial.number]
        self._ended[trial.number] = create_trial(
            params=drawn.params,
            distributions=drawn.distributions,
            system_attrs=drawn.system_attrs,
            **result_of(trial, self._options.metrics),
        )

    def recall(self, trial: Trial) -> None:
        self._remember(trial.number, trial.values, trial.memory)
        if trial.state != "asked":
            self.tell(trial)

    def _remember(self, number: int, values: Mapping[str, Any], memory: Mapping[str, Any]) -> None:
        params, distributions = params_of(self._space, values)
        notes = dict(memory.get("trial", {}))
        self._notes.update(memory.get("study", {}))
        self._drawn[number] = create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, system_attrs=notes
        )

    def _ask(
        self, number: int, ended: Mapping[int, FrozenTrial]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Values, and what the sampler has noted of the trial and of the study, as far as it is new."""
        storage, fixed = InMemoryStorage(), grid_values(self._space, number)
        directions = [StudyDirection[f"{mode}imize".upper()] for mode in self._options.modes]
        place = storage.create_new_study(directions, _NAME)
        for name, noted in self._notes.items():
            storage.set_study_system_attr(place, name, noted)
        for known in sorted(self._drawn):
            if known < number:
                storage.create_new_trial(place, template_trial=ended.get(known, self._drawn[known]))
        study = optuna.load_study(study_name=_NAME, storage=storage, sampler=self._sampler(number, fixed))
        values = self._allowed(study, number)
        noted = storage.get_study_system_attrs(place)
        of_study = {name: value for name, value in noted.items() if self._notes.get(name) != value}
        return values, _lasting(storage.get_all_trials(place, deepcopy=False)[-1].system_attrs), of_study

    def _allowed(self, study: optuna.Study, number: int) -> dict[str, Any]:
        """Asks until subsets have sizes that are allowed; the last answer is repaired."""
        for _ in range(_TRIES_OF.get(self._options.search, TRIES)):
            asked = study.ask()
            values = self._suggested(asked)
            if all(len(values[each.key]) in each.sizes for each in _subsets(self._space, values)):
                return values
            study.tell(asked, state=TrialState.FAIL)
        return repaired(self._space, values, seed=self._options.seed, number=number)

    def _suggested(self, asked: optuna.Trial) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for parameter in self._space.live:
            if exists(parameter, drawn, self._space.base):
                params = {name: suggested(asked, name, each) for name, each in distributions_of(parameter).items()}
                drawn[parameter.key] = value_of(parameter, params)
        return in_order(self._space, drawn)

    def _sampler(self, number: int, fixed: Mapping[str, Any]) -> BaseSampler:
        seed = chance_of(self._options.seed, number).getrandbits(32)
        in_turn = (each.key for each in self._space.live if each.kind == "grid" and each.key in fixed)
        params = {key: json.dumps(fixed[key]) for key in in_turn}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = _sampler_of(self._options, self._space, seed)
            return PartialFixedSampler(params, sampler) if params else sampler


class Replayed(Modelled):
    """A ledger holds which results were new at each draw; with them, draws that are recalled are asked again."""

    def __init__(self, space: Space, options: TuneOptions) -> None:
        super().__init__(space, options)
        self._seen: set[int] = set()

    def draw(self, number: int) -> Draw:
        new = sorted(set(self._ended) - self._seen)
        self._seen.update(new)
        draw = super().draw(number)
        return Draw(draw.values, {"new": new})

    def recall(self, trial: Trial) -> None:
        self._seen.update(trial.memory.get("new", ()))
        seen = {number: self._ended[number] for number in self._seen if number in self._ended}
        _, notes, of_study = self._ask(trial.number, seen)
        self._remember(trial.number, trial.values, {"trial": notes, "study": of_study})
        if trial.state != "asked":
            self.tell(trial)


def _sampler_of(options: TuneOptions, space: Space, seed: int) -> BaseSampler:
    if options.search == "tpe":
        # of several metrics each parameter is drawn by itself, as is Optuna's own way, where none need be grouped
        grouped = len(options.metrics) == 1 and any(parameter.when for parameter in space.live)
        return TPESampler(seed=seed, group=grouped)
    if options.search == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    if options.search == "cmaes":
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if options.search == "qmc":
        by_chance = RandomSampler(seed=seed)  # the sequence itself is one, of the search's seed
        return QMCSampler(
            scramble=True, seed=options.seed, independent_sampler=by_chance, warn_independent_sampling=False
        )
    genetic = NSGAIISampler if options.search == "nsga2" else NSGAIIISampler
    return genetic(seed=seed, population_size=POPULATION)


def repaired(space: Space, values: Mapping[str, Any], *, seed: int, number: int) -> dict[str, Any]:
    """With subsets of allowed sizes: as many elements as needed are added or taken out by chance."""
    chance, found = chance_of(seed, number), dict(values)
    for parameter in _subsets(space, values):
        chosen = values[parameter.key]
        others = [each for each in parameter.values if each not in chosen]
        few, many = parameter.sizes[0], parameter.sizes[-1]
        more = chance.sample(others, max(few - len(chosen), 0))
        found[parameter.key] = parameter.ordered([*chance.sample(chosen, min(len(chosen), many)), *more])
    return found


def _subsets(space: Space, values: Mapping[str, Any]) -> Iterable[Parameter]:
    return (each for each in space.live if each.kind == "subset" and each.key in values)


def _lasting(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is only for others that ask while a trial is not yet drawn: parameters."""
    return {name: noted for name, noted in notes.items() if ":relative_params" not in name}
