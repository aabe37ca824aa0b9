"""The process of a sweep that has Ray: searches, tries the winners, and says how it ended.

`python -m launcher.tune.driver.driver SWEEP ATTEMPT SCRATCH`, with what its machine offers and, of several machines,
where Ray's head is to be. Should it fall, another one goes on from the ledger.
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
from fmfsd.run.heartbeat import ProgressFile
from fmfsd.run.run_dir import NOW, RunDir
from fmfsd.system.atomic_files import write_json
from launcher.agent.resources import Resources
from launcher.check.data_checks import last_epoch
from launcher.config.environment import travelling
from launcher.resources.cost_probe import Costs, costs_of
from launcher.run_dir.sweep_dir import SweepDir
from launcher.tune.driver.driver_outcome import write_crash
from launcher.tune.driver.ray_scheduler import Scheduler, rule_of
from launcher.tune.driver.ray_searcher import Feeder, Searched, Source
from launcher.tune.driver.ray_tuner import run_trials
from launcher.tune.driver.winners import Confirmed, reruns, test_winners
from launcher.tune.ray.capacity_watchdog import Patience
from launcher.tune.ray.cluster import Head, ending_if_ray_dies, existing_ray, head_of_a_cluster, machines, private_ray
from launcher.tune.records.sweep_settings import Begun
from launcher.tune.records.trial_resources import Shape
from launcher.tune.results.write import write_final_results, write_report, write_results
from launcher.tune.space.load import read_space
from launcher.tune.space.parameters import overrides
from launcher.tune.sweep.disk_budget import DiskBudget
from launcher.tune.sweep.sweep_state import Book
from launcher.tune.sweep.trial_spec import TrialOrder


class Driver:
    """One start of a sweep's search, from where its ledger ends to the end or to a stop."""

    def __init__(
        self,
        sweep: SweepDir,
        begun: Begun,
        environment: Mapping[str, str],
        progress: ProgressFile,
        *,
        offered: Resources,
        head: Head | None,
    ) -> None:
        self._sweep, self._begun, self._environment, self._progress = sweep, begun, environment, progress
        self._offered, self._head = offered, head
        self._space = read_space(sweep.space, config=str(sweep.config))
        self._book = Book(sweep, self._space, begun.options)
        self._patience = Patience(lambda: begun.shape_left_on(machines()))

    def run(self, folder: Path, last_word: Callable[[Exception], None]) -> str:
        """finished or stopped; Ray's files are in `folder`. Raises SearchFailedError if no trial came to its end."""
        try:
            with self._ray(folder), ending_if_ray_dies(last_word):
                shape = self._begun.shape_left_on(machines())
                self._budget = self._budget_for(shape)
                self._search(shape)
                if not self._is_stopped():
                    self._judge(shape)
        finally:
            write_final_results(self._sweep, self._space, self._book.history, held_out=self._begun.held_out)
            self._write_report()
            self._book.close()
        return "stopped" if self._is_stopped() else "finished"

    def _ray(self, folder: Path) -> AbstractContextManager[None]:
        options = self._begun.options
        if options.ray_address is not None:
            return existing_ray(options.ray_address)
        if self._head is not None:
            return head_of_a_cluster(folder, self._head, self._offered)
        return private_ray(folder, self._offered, dashboard=options.dashboard)

    def _is_stopped(self) -> bool:
        return self._sweep.coordination.stop_request.exists()

    def _budget_for(self, shape: Shape) -> DiskBudget:
        """The check has asked what a config costs, so the answer is at hand."""
        options, config = self._begun.options, load_config(str(self._sweep.config))
        bounded = options.disk_bytes is not None
        words = [str(self._sweep.config)]
        workers = self._begun.launch.nodes * (self._begun.launch.gpus or 1)
        costs = Costs()
        if bounded:
            costs = costs_of(config, words, workers=workers, environment=self._environment, device=shape.device)
        return DiskBudget.of(self._sweep, options, config, costs, concurrent=shape.concurrent)

    def _search(self, shape: Shape) -> None:
        options, history = self._begun.options, self._book.history
        self._budget.tidy(history, self._book)  # a kill may have come between a trial's end and this
        rule = Scheduler(
            rule_of(options, self._most_epochs()), history, last_epoch=self._last_epoch, on_stop=self._stop_early
        )
        source = Searched(
            self._book,
            lambda trial: self._order(shape, trial.name, trial.overrides, epochs=max(trial.reports, default=0)),
            is_stopped=self._is_stopped,
            done=self._after_a_trial,
        )
        self._carry_out(source, rule, shape, trouble=self._want_of_room)

    def _judge(self, shape: Shape) -> None:
        """The winners of a search that is done."""
        if not self._book.history.ranked():
            raise SearchFailedError(self._why_none())
        test_winners(self._book, self._sweep, shape, pulse=self._pulse, is_stopped=self._is_stopped)
        self._budget.tidy_reruns(self._book.history)
        source = Confirmed(
            self._book,
            self._sweep,
            reruns(self._book.history, self._sweep, self._space),
            lambda rerun: self._order(shape, rerun.name, rerun.overrides),
            is_stopped=self._is_stopped,
            done=self._after_a_rerun,
        )
        self._carry_out(source, None, shape, trouble=str)

    def _want_of_room(self) -> str:
        """For a new trial; empty if there is room. What was interrupted has its room already."""
        if not self._book.begins or self._budget.may_begin(self._book.history):
            return ""
        return self._budget.trouble(self._book.history)

    def _carry_out(self, source: Source, rule: Scheduler | None, shape: Shape, *, trouble: Callable[[], str]) -> None:
        feeder = Feeder(source, concurrent=shape.concurrent, trouble=trouble, is_stopped=self._is_stopped)
        run_trials(
            feeder,
            rule,
            launch=self._begun.launch,
            shape=shape,
            max_failures=self._begun.options.max_failures,
            scratch=self._sweep.path / ".tune",
            pulse=self._pulse,
        )

    def _pulse(self) -> None:
        """We are not hung, and not waiting for what won't come."""
        self._patience.look()
        self._progress.show("search", step=len(self._book.history.trials))

    def _order(self, shape: Shape, name: str, overrides: tuple[str, ...] | list[str], *, epochs: int = 0) -> TrialOrder:
        return TrialOrder(
            sweep=self._sweep.path,
            name=name,
            overrides=tuple(overrides),
            launch=self._begun.launch_of_a_trial(shape.device),
            cwd=str(self._sweep.path),
            environment=travelling(self._environment),
            cores=shape.cores,
            reported=epochs,
            wants_costs=any(metric.startswith("cost/") for metric in self._begun.options.metrics),
        )

    def _last_epoch(self, number: int) -> int:
        trial = self._book.history.trials[number]
        return last_epoch(load_config(str(self._sweep.config), trial.overrides))

    def _most_epochs(self) -> int:
        """Of any trial."""
        searched = [max(each.values) for each in self._space.parameters if each.key == "train.epochs"]
        longest = {"train.epochs": searched[0]} if searched else {}
        return last_epoch(load_config(str(self._sweep.config), overrides({**self._space.constants, **longest})))

    def _stop_early(self, number: int) -> None:
        """Its own coordinator ends it, wherever that is."""
        self._sweep.trial(self._book.history.trials[number].name).stop_request.write_text(NOW)

    def _after_a_trial(self) -> None:
        self._budget.tidy(self._book.history, self._book)
        self._show_results()

    def _after_a_rerun(self) -> None:
        self._budget.tidy_reruns(self._book.history)
        self._show_results()

    def _show_results(self) -> None:
        write_results(self._sweep, self._space, self._book.history, held_out=self._begun.held_out)

    def _write_report(self) -> None:
        """Whatever is wrong with the page is reported in the log, and the search goes on."""
        if why := write_report(self._sweep):
            print(f"no report was written: {why}", file=sys.stderr)

    def _why_none(self) -> str:
        causes = [trial.cause for trial in self._book.history.runs if trial.cause]
        return f"no trial came to its end; the last one failed: {causes[-1]}" if causes else "no trial came to its end"


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code; how it ended stands in the sweep's folder."""
    os.umask(0o077)
    asked = _parser().parse_args(argv)
    sweep, attempt = SweepDir(asked.sweep), asked.attempt
    run, begun = sweep.coordination, Begun.of(sweep.ledger, environment)
    last_word = partial(write_crash, run, attempt)
    offered = Resources(asked.cores, tuple(map(str, range(asked.gpus))))
    head = Head(asked.head[0], int(asked.head[1]), asked.machines) if asked.head else None
    try:
        with ProgressFile(run.rank_progress(0), rank=0, attempt=attempt) as progress:
            driver = Driver(sweep, begun, environment, progress, offered=offered, head=head)
            state = driver.run(asked.scratch / "ray", last_word)
    except Exception as error:
        last_word(error)
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
