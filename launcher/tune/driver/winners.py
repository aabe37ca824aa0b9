"""What is done with the best of a search: read the test set once, and run them again with seeds not seen before."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray

from fmfsd.config import load_config
from fmfsd.errors import RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.plan.plan import KEEP_FREED_MEMORY
from launcher.run_dir.sweep_dir import SweepDir
from launcher.transport.local_commands import said_here
from launcher.tune.driver.ray_searcher import Ended
from launcher.tune.records.history import History, Trial, name_of_rerun
from launcher.tune.records.trial_resources import Shape
from launcher.tune.space.parameters import Space, overrides
from launcher.tune.sweep.sweep_state import Book
from launcher.tune.sweep.trial_spec import TrialOrder

BASE = "base"
ANSWER_S = 3600.0
LOOK_S = 0.5


def test_winners(
    book: Book, sweep: SweepDir, shape: Shape, *, pulse: Callable[[], None], is_stopped: Callable[[], bool]
) -> None:
    """Of a search for one metric the best trial, of several those of the front that have their checkpoints: each is
    looked at once, however often we come here. `pulse` is called meanwhile; once it `is_stopped`, the rest is left.
    RunFailedError if a winner can't be read."""
    history = book.history
    winners = history.front() if len(history.options.metrics) > 1 else history.ranked()[:1]
    missing = [trial for trial in winners if trial.number not in history.tested and not trial.is_freed]
    ask = _tested.options(num_cpus=shape.cores, num_gpus=min(shape.gpus, 1)).remote
    answers = [ask(str(sweep.trial(trial.name).path), shape.device) for trial in missing]
    for trial, answer in zip(missing, answers, strict=True):
        while not ray.wait([answer], timeout=LOOK_S)[0]:
            pulse()
            if is_stopped():
                return
        book.note("tested", trial=trial.number, metrics=_read(trial, *ray.get(answer)))


@ray.remote
def _tested(run: str, device: str) -> tuple[int | None, str, str]:
    words = ("evaluate", run, "--split", "test", "--no-early-exits", "--device", device, "--json")
    argv = (sys.executable, "-P", "-m", "fmfsd", *words)
    return said_here(argv, deadline_s=ANSWER_S, more=KEEP_FREED_MEMORY if device == "cpu" else {})


def _read(trial: Trial, code: int | None, output: str, errors: str) -> dict[str, float]:
    if code != 0:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        raise RunFailedError(f"trial {trial.name} could not be tried on the test set: {last}")
    return {f"test/{name}": value for name, value in json.loads(output)["metrics"].items()}


@dataclass(frozen=True)
class Rerun:
    """A config, by its trial's name or BASE, to be run with a seed."""

    config: str
    seed: int
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its run's folder."""
        return name_of_rerun(self.config, self.seed)

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*self.values, f"seed={self.seed}", "train.evaluate_test=true")


def reruns(history: History, sweep: SweepDir, space: Space) -> list[Rerun]:
    """The best configs and the one that the search began with, each with the same seeds, that are not done yet.

    That one has the space's constants too: what is compared differs in nothing but what was searched.
    """
    configs = {trial.name: trial.overrides for trial in history.ranked()[: history.options.best]}
    configs[BASE] = overrides(space.constants)
    done = {(each.config, each.seed) for each in history.confirmations}
    wanted = [Rerun(name, seed, tuple(configs[name])) for seed in _seeds(history, sweep) for name in configs]
    return [each for each in wanted if (each.config, each.seed) not in done]


def _seeds(history: History, sweep: SweepDir) -> range:
    """That no trial had when the first of them was run again: trials that are added later change none of them."""
    taken = {load_config(str(sweep.config)).seed, *(trial.values.get("seed", 0) for trial in history.runs)}
    first = min((each.seed for each in history.confirmations), default=max(taken) + 1)
    return range(first, first + history.options.seeds)


class Confirmed:
    """The source of these runs."""

    def __init__(
        self,
        book: Book,
        sweep: SweepDir,
        wanted: Sequence[Rerun],
        order_of: Callable[[Rerun], TrialOrder],
        *,
        is_stopped: Callable[[], bool],
        done: Callable[[], None],
    ) -> None:
        self._book, self._sweep, self._order_of = book, sweep, order_of
        self._wanted, self._next = dict(enumerate(wanted, 1)), 1
        self._is_stopped, self._done = is_stopped, done

    def next_order(self) -> tuple[int, TrialOrder] | None:
        number = self._next
        self._next += 1
        return (number, self._order_of(self._wanted[number])) if number in self._wanted else None

    def reported(self, _number: int, _epoch: int, _metrics: Mapping[str, float]) -> None:
        """Nobody decides by these."""

    def restarted(self, number: int, cause: str) -> None:
        rerun = self._wanted[number]
        self._book.note("restarted", config=rerun.config, seed=rerun.seed, cause=cause)

    def ended(self, number: int, how: Ended) -> None:
        rerun = self._wanted[number]
        if how.state == "stopped" and self._is_stopped():
            return
        if how.state == "finished":
            found = _last_metrics(self._sweep.trial(rerun.name))
            self._book.note("confirmed", config=rerun.config, seed=rerun.seed, metrics=found)
        else:
            self._book.note("unconfirmed", config=rerun.config, seed=rerun.seed, cause=how.cause or how.state)
        self._done()


def _last_metrics(run: RunDir) -> dict[str, float]:
    splits = read_json(run.outcome)["metrics"]
    return {f"{split}/{name}": value for split in ("valid", "test") for name, value in splits.get(split, {}).items()}
