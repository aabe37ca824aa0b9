"""The driver of a sweep: the process that runs Ray Tune, evaluates the winners and writes the outcome.

`python -m launcher.tune.driver.driver SWEEP ATTEMPT SCRATCH`, with the resources of its machine and, for several
machines, the address of Ray's head. If it fails, the next driver resumes from the ledger.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from fmfsd.config import load_config
from fmfsd.errors import FmfsdError, SearchFailedError
from fmfsd.run.heartbeat import HeartbeatFile
from fmfsd.run.run_dir import STOP_NOW, RunDir
from fmfsd.system.atomic_files import write_json
from launcher.agent.available_resources import Resources
from launcher.check.data_checks import last_epoch
from launcher.config.environment import forwarded_variables
from launcher.resources.config_cost import Costs, probe_costs
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.driver.driver_outcome import write_driver_crash
from launcher.tune.driver.ray_scheduler import EarlyStopScheduler, build_stopping_rule
from launcher.tune.driver.ray_searcher import RunSource, SampledTrials, SweepSearcher
from launcher.tune.driver.ray_tuner import run_trials
from launcher.tune.driver.winners import RerunTrials, evaluate_winners, pending_reruns
from launcher.tune.ray.capacity_watchdog import CapacityWatchdog
from launcher.tune.ray.ray_init import (
    RayHead,
    cluster_head,
    existing_ray,
    kill_if_ray_dies,
    list_alive_machines,
    private_ray,
)
from launcher.tune.records.sweep_settings import SweepSettings
from launcher.tune.records.trial_resources import TrialResources
from launcher.tune.results.write import write_final_results, write_report, write_results
from launcher.tune.space.load import read_space
from launcher.tune.space.parameters import format_overrides
from launcher.tune.sweep.disk_budget import DiskBudget
from launcher.tune.sweep.sweep_state import SweepState
from launcher.tune.sweep.trial_spec import TrialSpec


class SweepDriver:
    """One start of a sweep, from the end of its ledger until the sweep finishes or is stopped."""

    def __init__(
        self,
        sweep: SweepDir,
        settings: SweepSettings,
        environment: Mapping[str, str],
        progress: HeartbeatFile,
        *,
        resources: Resources,
        head: RayHead | None,
    ) -> None:
        self._sweep, self._settings, self._environment, self._progress = sweep, settings, environment, progress
        self._resources, self._head = resources, head
        self._space = read_space(sweep.space, config=str(sweep.config))
        self._state = SweepState(sweep, self._space, settings.options)
        self._capacity = CapacityWatchdog(lambda: settings.fit_on_remaining(list_alive_machines()))

    def run(self, folder: Path, report_crash: Callable[[Exception], None]) -> str:
        """Run the sweep; return `finished` or `stopped`. Ray's files are in `folder`.

        `report_crash` gets the error if one of Ray's processes dies. Raise SearchFailedError if no trial finished.
        """
        try:
            with self._ray(folder), kill_if_ray_dies(report_crash):
                resources = self._settings.fit_on_remaining(list_alive_machines())
                self._budget = self._budget_for(resources)
                self._search(resources)
                if not self._is_stopped():
                    self._evaluate_winners(resources)
        finally:
            write_final_results(self._sweep, self._space, self._state.history, held_out=self._settings.held_out)
            self._write_report()
            self._state.close()
        return "stopped" if self._is_stopped() else "finished"

    def _ray(self, folder: Path) -> AbstractContextManager[None]:
        options = self._settings.options
        if options.ray_address is not None:
            return existing_ray(options.ray_address)
        if self._head is not None:
            return cluster_head(folder, self._head, self._resources)
        return private_ray(folder, self._resources, dashboard=options.dashboard)

    def _is_stopped(self) -> bool:
        return self._sweep.coordinator_dir.stop_request.exists()

    def _budget_for(self, resources: TrialResources) -> DiskBudget:
        """Return the disk budget. The checks have probed the cost of the config, so the result is cached."""
        options, config = self._settings.options, load_config(str(self._sweep.config))
        config_args = [str(self._sweep.config)]
        workers = self._settings.launch.nodes * (self._settings.launch.gpus or 1)
        costs = Costs()
        if options.disk_bytes is not None:
            device = resources.device
            costs = probe_costs(config, config_args, workers=workers, environment=self._environment, device=device)
        return DiskBudget.estimate(self._sweep, options, config, costs, concurrent=resources.concurrent)

    def _search(self, resources: TrialResources) -> None:
        options, history = self._settings.options, self._state.history
        self._budget.delete_checkpoints(
            history, self._state
        )  # a kill may have come between a trial's end and the deletion
        rule = EarlyStopScheduler(
            build_stopping_rule(options, self._most_epochs()),
            history,
            last_epoch=self._last_epoch,
            on_stop=self._stop_early,
        )
        source = SampledTrials(
            self._state,
            lambda each: self._trial_spec(resources, each.name, each.overrides, epochs=max(each.reports, default=0)),
            is_stopped=self._is_stopped,
            on_trial_end=self._after_a_trial,
        )
        self._run_source(source, rule, resources, trouble=self._disk_shortage)

    def _evaluate_winners(self, resources: TrialResources) -> None:
        """Evaluate the winners on the test set, and run them again with new seeds."""
        if not self._state.history.rank_trials():
            raise SearchFailedError(self._no_winner_message())
        evaluate_winners(self._state, self._sweep, resources, on_step=self._on_step, is_stopped=self._is_stopped)
        self._budget.delete_rerun_checkpoints(self._state.history)
        source = RerunTrials(
            self._state,
            self._sweep,
            pending_reruns(self._state.history, self._sweep, self._space),
            lambda rerun: self._trial_spec(resources, rerun.name, rerun.overrides),
            is_stopped=self._is_stopped,
            on_trial_end=self._after_a_rerun,
        )
        self._run_source(source, None, resources, trouble=str)

    def _disk_shortage(self) -> str:
        """Return why a new trial has no disk space, or an empty string. Interrupted trials have theirs already."""
        if not self._state.is_next_trial_new or self._budget.has_room_for_trial(self._state.history):
            return ""
        return self._budget.explain_shortage(self._state.history)

    def _run_source(
        self,
        source: RunSource,
        rule: EarlyStopScheduler | None,
        resources: TrialResources,
        *,
        trouble: Callable[[], str],
    ) -> None:
        searcher = SweepSearcher(
            source, concurrent=resources.concurrent, find_problem=trouble, is_stopped=self._is_stopped
        )
        run_trials(
            searcher,
            rule,
            launch=self._settings.launch,
            resources=resources,
            max_failures=self._settings.options.max_failures,
            scratch=self._sweep.path / ".tune",
            on_step=self._on_step,
        )

    def _on_step(self) -> None:
        """Check the capacity of the cluster, and write a heartbeat."""
        self._capacity.check()
        self._progress.update("search", step=len(self._state.history.trials))

    def _trial_spec(
        self, resources: TrialResources, name: str, overrides: tuple[str, ...] | list[str], *, epochs: int = 0
    ) -> TrialSpec:
        return TrialSpec(
            sweep=self._sweep.path,
            name=name,
            overrides=tuple(overrides),
            launch=self._settings.trial_launch(resources.device),
            cwd=str(self._sweep.path),
            environment=forwarded_variables(self._environment),
            cores=resources.cores,
            reported=epochs,
            wants_costs=any(metric.startswith("cost/") for metric in self._settings.options.metrics),
        )

    def _last_epoch(self, number: int) -> int:
        trial = self._state.history.trials[number]
        return last_epoch(load_config(str(self._sweep.config), trial.overrides))

    def _most_epochs(self) -> int:
        """Return the largest number of epochs of any trial."""
        searched = [max(each.values) for each in self._space.parameters if each.key == "train.epochs"]
        longest = {"train.epochs": searched[0]} if searched else {}
        return last_epoch(load_config(str(self._sweep.config), format_overrides({**self._space.constants, **longest})))

    def _stop_early(self, number: int) -> None:
        """Write a stop request into the trial's run folder; the coordinator of that run stops it."""
        self._sweep.trial(self._state.history.trials[number].name).stop_request.write_text(STOP_NOW)

    def _after_a_trial(self) -> None:
        self._budget.delete_checkpoints(self._state.history, self._state)
        self._show_results()

    def _after_a_rerun(self) -> None:
        self._budget.delete_rerun_checkpoints(self._state.history)
        self._show_results()

    def _show_results(self) -> None:
        write_results(self._sweep, self._space, self._state.history, held_out=self._settings.held_out)

    def _write_report(self) -> None:
        """Write the report. Only log an error: a failed report must not fail the sweep."""
        if error := write_report(self._sweep):
            print(f"no report was written: {error}", file=sys.stderr)

    def _no_winner_message(self) -> str:
        causes = [trial.cause for trial in self._state.history.runs if trial.cause]
        return f"no trial finished; the last one failed: {causes[-1]}" if causes else "no trial finished"


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the driver and return the exit code. The outcome, or the error, is written into the sweep folder."""
    os.umask(0o077)
    args = _parser().parse_args(argv)
    sweep, attempt = SweepDir(args.sweep), args.attempt
    run, settings = sweep.coordinator_dir, SweepSettings.read(sweep.ledger, environment)
    report_crash = partial(write_driver_crash, run, attempt)
    offered = Resources(args.cores, tuple(map(str, range(args.gpus))))
    head = RayHead(args.head[0], int(args.head[1]), args.machines) if args.head else None
    try:
        with HeartbeatFile(run.rank_progress(0), rank=0, attempt=attempt) as progress:
            driver = SweepDriver(sweep, settings, environment, progress, resources=offered, head=head)
            state = driver.run(args.scratch / "ray", report_crash)
    except Exception as error:
        report_crash(error)
        return error.exit_code if isinstance(error, FmfsdError) else 1
    _write_outcome(run, attempt, state)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep", type=Path)
    parser.add_argument("attempt", type=int)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--machines", type=int, default=1)
    parser.add_argument("--head", nargs=2, metavar=("ADDRESS", "PORT"))
    return parser


def _write_outcome(run: RunDir, attempt: int, state: str) -> None:
    write_json(run.outcome, {"state": state, "attempt": attempt, "resumable": True, "time": time.time(), "metrics": {}})


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ))
