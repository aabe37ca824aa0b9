"""The winners of a sweep: evaluate them once on the test set, and run them again with new seeds."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray

from fmfsd.config import load_config
from fmfsd.errors import RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json
from launcher.plan.launch_plan import MALLOC_SETTINGS
from launcher.run_dir.sweep_dir import SweepDir
from launcher.transport.local_commands import run_captured
from launcher.tune.driver.ray_searcher import TrialResult
from launcher.tune.records.history import History, Trial, format_rerun_name
from launcher.tune.records.trial_resources import TrialResources
from launcher.tune.space.parameters import Space, format_overrides
from launcher.tune.sweep.sweep_state import SweepState
from launcher.tune.sweep.trial_spec import TrialSpec

BASE = "base"
EVALUATE_TIMEOUT_S = 3600.0
POLL_S = 0.5


def evaluate_winners(
    state: SweepState,
    sweep: SweepDir,
    resources: TrialResources,
    *,
    on_step: Callable[[], None],
    is_stopped: Callable[[], bool],
) -> None:
    """Evaluate each winner once on the test set, also over several starts of the sweep.

    Winners are the best trial or, with several metrics, the trials of the Pareto front that still have checkpoints.
    `on_step` is called while waiting; once `is_stopped`, the remaining winners are left out. Raise RunFailedError if a
    winner can not be evaluated.
    """
    history = state.history
    winners = history.pareto_front() if len(history.options.metrics) > 1 else history.rank_trials()[:1]
    missing = [
        trial for trial in winners if trial.number not in history.test_metrics and not trial.is_checkpoint_deleted
    ]
    evaluate = _evaluate.options(num_cpus=resources.cores, num_gpus=min(resources.gpus, 1)).remote
    results = [evaluate(str(sweep.trial(trial.name).path), resources.device) for trial in missing]
    for trial, result in zip(missing, results, strict=True):
        while not ray.wait([result], timeout=POLL_S)[0]:
            on_step()
            if is_stopped():
                return
        state.append_fact("tested", trial=trial.number, metrics=_parse_metrics(trial, *ray.get(result)))


@ray.remote
def _evaluate(run: str, device: str) -> tuple[int | None, str, str]:
    command = ("evaluate", run, "--split", "test", "--no-early-exits", "--device", device, "--json")
    argv = (sys.executable, "-P", "-m", "fmfsd", *command)
    return run_captured(argv, timeout_s=EVALUATE_TIMEOUT_S, extra_env=MALLOC_SETTINGS if device == "cpu" else {})


def _parse_metrics(trial: Trial, code: int | None, output: str, errors: str) -> dict[str, float]:
    if code != 0:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        raise RunFailedError(f"trial {trial.name} could not be evaluated on the test set: {last}")
    return {f"test/{name}": value for name, value in json.loads(output)["metrics"].items()}


@dataclass(frozen=True)
class Rerun:
    """A config (a trial's name or BASE) to run with a seed."""

    config: str
    seed: int
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return format_rerun_name(self.config, self.seed)

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*self.values, f"seed={self.seed}", "train.evaluate_test=true")


def pending_reruns(history: History, sweep: SweepDir, space: Space) -> list[Rerun]:
    """Return the pending runs of the best configs and of the base config, each with the same new seeds.

    The base config also has the space's constants, so that the compared configs differ only in searched parameters.
    """
    configs = {trial.name: trial.overrides for trial in history.rank_trials()[: history.options.best]}
    configs[BASE] = format_overrides(space.constants)
    done = {(each.config, each.seed) for each in history.confirmations}
    planned = [Rerun(name, seed, tuple(configs[name])) for seed in _seeds(history, sweep) for name in configs]
    return [each for each in planned if (each.config, each.seed) not in done]


def _seeds(history: History, sweep: SweepDir) -> range:
    """Return seeds that no trial had at the time of the first rerun; trials added later do not change them."""
    used = {load_config(str(sweep.config)).seed, *(trial.values.get("seed", 0) for trial in history.runs)}
    first = min((each.seed for each in history.confirmations), default=max(used) + 1)
    return range(first, first + history.options.seeds)


class RerunTrials:
    """The reruns as a source."""

    def __init__(
        self,
        state: SweepState,
        sweep: SweepDir,
        pending: Sequence[Rerun],
        to_spec: Callable[[Rerun], TrialSpec],
        *,
        is_stopped: Callable[[], bool],
        on_trial_end: Callable[[], None],
    ) -> None:
        self._state, self._sweep, self._to_spec = state, sweep, to_spec
        self._pending, self._next = dict(enumerate(pending, 1)), 1
        self._is_stopped, self._done = is_stopped, on_trial_end

    def next_run(self) -> tuple[int, TrialSpec] | None:
        number = self._next
        self._next += 1
        return (number, self._to_spec(self._pending[number])) if number in self._pending else None

    def on_report(self, _number: int, _epoch: int, _metrics: Mapping[str, float]) -> None:
        """Ignore metrics of single epochs; only the final ones count."""

    def on_restart(self, number: int, cause: str) -> None:
        rerun = self._pending[number]
        self._state.append_fact("restarted", config=rerun.config, seed=rerun.seed, cause=cause)

    def on_end(self, number: int, result: TrialResult) -> None:
        rerun = self._pending[number]
        if result.state == "stopped" and self._is_stopped():
            return
        if result.state == "finished":
            metrics = _last_metrics(self._sweep.trial(rerun.name))
            self._state.append_fact("confirmed", config=rerun.config, seed=rerun.seed, metrics=metrics)
        else:
            self._state.append_fact(
                "unconfirmed", config=rerun.config, seed=rerun.seed, cause=result.cause or result.state
            )
        self._done()


def _last_metrics(run: RunDir) -> dict[str, float]:
    splits = read_json(run.outcome)["metrics"]
    return {f"{split}/{name}": value for split in ("valid", "test") for name, value in splits.get(split, {}).items()}
