"""Carries a plan out: prepares the data, writes the run's folder, runs attempts, and says how it ended."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TextIO, cast

from rich.console import Console

from fmfsd.config import TrainConfig, changes, dump_config, load_config
from fmfsd.errors import CheckError, RunFailedError
from fmfsd.files import read_json, write_json, write_whole
from fmfsd.rundir import RunDir
from fmfsd.terminal import SteadyStream
from launcher.attempt import Attempt
from launcher.check import is_prepared, total_steps, warnings
from launcher.config import LaunchConfig
from launcher.display import RunDisplay, heads_table
from launcher.failures import page
from launcher.hosts.agents import Agent
from launcher.hosts.helpers import run_here
from launcher.log_follower import LogFollower
from launcher.manifest import launch_entry, manifest, masked, software_changes
from launcher.ownership import sole_owner
from launcher.plan import LaunchPlan, NodePlan
from launcher.recovery import Ended, Recovery
from launcher.requests import SECOND_INTERRUPT_S, Requests
from launcher.supervise import run_plan

EXIT_CODES = {"finished": 0, "stopped": 75, "interrupted": 130}
AGAIN = f"Ctrl-C again, {SECOND_INTERRUPT_S:g} s later or more, ends at once"


def steady(stream: TextIO) -> IO[str]:
    """`stream`, which may lose its reader without ending the run."""
    return cast(IO[str], SteadyStream(stream))


def console_of(*, as_json: bool) -> Console:
    """For human words: stdout, or stderr where that is for JSON."""
    return Console(file=steady(sys.stderr if as_json else sys.stdout), highlight=False, soft_wrap=True)


class Execution:
    """One launch that has passed `check`, which is called again once the data is prepared.

    `plan_of` gives the plan for some of the launch's node slots. Human words go to `console`; with `as_json` the
    outcome goes to stdout. `look` is called ten times a second while an attempt is under way. `keep_launch` leaves word
    of how to launch it again.
    """

    def __init__(
        self,
        config: TrainConfig,
        launch: LaunchConfig,
        run: RunDir,
        plan_of: Callable[[tuple[int, ...]], LaunchPlan],
        *,
        check: Callable[[], None],
        console: Console,
        as_json: bool = False,
        start_agent: Callable[[NodePlan], Agent],
        look: Callable[[], None] = lambda: None,
        keep_launch: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._launch, self._run, self._plan_of, self._as_json = config, launch, run, plan_of, as_json
        self._check, self._look, self._start_agent, self._keep_launch = check, look, start_agent, keep_launch
        self._plan, self._acknowledged, self._argv = plan_of(tuple(range(launch.nodes))), False, list[str]()
        self._console = console

    def run_to_end(self, argv: Sequence[str]) -> int:
        """The exit code. Raises CheckError while no worker is started, RunFailedError with the failure page after."""
        self._argv = list(argv)
        if self._is_finished():
            self._say(f"run: {self._run.path}")
            self._say("this run is finished; nothing to do")
            return self._conclude("finished")
        requests = Requests()
        with requests.heard():
            self._prepare(requests)
            if requests.stop:
                self._say("stopped before anything was started")
                return EXIT_CODES["interrupted"]
            fallback = self._launch.device == "auto" and self._plan.device == "cpu"
            self._say(f"run: {self._run.path}")
            self._say(self._plan.summary() + (" (no GPU is visible)" if fallback else ""))
            for text in warnings(self._launch, self._run):
                self._say(f"warning: {text}")
            with sole_owner(self._run):
                self._write_run_dir()
                ended = self._attempts(requests)
                self._write_outcome(ended)
        if ended.failure is not None:
            self._print_json(RunFailedError.exit_code)
            raise RunFailedError(self._page(ended))
        return self._conclude(ended.attempt.state, ended.attempt.stopped_after_s)

    def _is_finished(self) -> bool:
        """And what is asked for has no more steps than it has made."""
        outcome = self._outcome()
        return outcome.get("state") == "finished" and outcome["step"] >= (total_steps(self._config) or 0)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _prepare(self, requests: Requests) -> None:
        if not self._plan.prepare or is_prepared(self._config):
            return
        code = run_here(self._plan.prepare, stop=lambda: requests.stop)
        if not requests.stop:
            if code:
                raise CheckError(f"the data set was not prepared (exit code {code}); nothing was started")
            self._check()

    def _write_run_dir(self) -> None:
        try:
            if self._run.config.exists():
                self._go_on()
            else:
                write_json(self._run.manifest, manifest(self._config, self._argv))
                self._keep_launch()
                write_whole(self._run.config, dump_config(self._config))
            write_whole(self._run.plan, self._plan.to_json())
        except OSError as error:
            raise CheckError(f"the run directory can't be written: {error}") from error

    def _go_on(self) -> None:
        """With the run that is there, which another launch may have begun between the check and the lock."""
        changed = changes(load_config(str(self._run.config)), self._config)
        if self._launch.resume == "never" or not all(change.is_allowed for change in changed):
            raise CheckError(f"{self._run.path}: another launch has just begun a run there: choose another --run-dir")
        entry, content = launch_entry(self._argv, list(map(str, changed))), read_json(self._run.manifest)
        for text in entry["changes"]:
            self._say(f"changed: {text}")
        for text in software_changes(content["launches"][-1], entry):
            self._say(f"warning: not as it was, so results may differ in the last bits: {text}")
        write_json(self._run.manifest, {**content, "launches": [*content["launches"], entry]})
        self._keep_launch()
        write_whole(self._run.config, dump_config(self._config))

    def _attempts(self, requests: Requests) -> Ended:
        recovery = Recovery(
            launch=self._launch,
            run=self._run,
            requests=requests,
            plan_of=self._plan_of,
            start=partial(self._attempt, requests, None if self._plan.is_here else LogFollower(self._run)),
            say=self._say,
            shards=self._config.data.shards,
        )
        return recovery.to_the_end()

    def _attempt(self, requests: Requests, logs: LogFollower | None, plan: LaunchPlan) -> Attempt:
        workers = plan.num_workers
        shown = RunDisplay(self._console, self._run, grace_s=self._launch.grace_s, num_workers=workers, logs=logs)
        with shown as display:
            return run_plan(
                plan,
                self._run,
                grace_s=self._launch.grace_s,
                hang_timeout_s=self._launch.hang_timeout_s,
                requests=requests,
                watch=partial(self._watch, display, requests),
                start_agent=self._start_agent,
            )

    def _watch(self, display: RunDisplay, requests: Requests) -> None:
        if requests.stop and not self._acknowledged:
            self._acknowledged = True
            with_checkpoint = f"stopping with a checkpoint, within {self._launch.grace_s:g} s; {AGAIN}"
            self._say("ending at once, as asked" if requests.interrupted else with_checkpoint)
        display.update()
        self._look()

    def _write_outcome(self, ended: Ended) -> None:
        """What is left to say when the workers have not said how the run ended."""
        with suppress(OSError):  # the page says it too
            self._write_last_word(ended)

    def _write_last_word(self, ended: Ended) -> None:
        failure, attempt = ended.failure, ended.attempt
        content: dict[str, Any] = {"state": attempt.state, "attempt": attempt.number, "resumable": True}
        if failure is not None:
            told = {name: getattr(failure, name) for name in ("cause", "rank", "node", "step", "time", "advice")}
            more = {"victims": list(failure.victims), "resumable": failure.resumable, "command": self._command()}
            write_json(self._run.outcome, {**content, **told, **more, "no_other_attempt": ended.refusal})
        elif attempt.state == "interrupted":
            write_json(self._run.outcome, content)

    def _page(self, ended: Ended) -> str:
        assert ended.failure is not None
        history = f"no attempt follows attempt {ended.attempt.number}: {ended.refusal}"
        return page(self._run, ended.failure, history=history, command=self._command())

    def _command(self) -> str:
        """What goes on with this run: the same command, unless it can't be shown with the secrets that are in it."""
        argv = [Path(self._argv[0]).name, *masked(self._argv[1:])]
        if argv[1:] != self._argv[1:]:
            argv[1:] = ["resume", str(self._run.path)]
        given = argv[1:2] == ["resume"] or any(part.partition("=")[0] == "--run-dir" for part in argv)
        return shlex.join(argv if given else [*argv, "--run-dir", str(self._run.path)])

    def _conclude(self, state: str, stopped_after_s: float | None = None) -> int:
        outcome = self._outcome()
        if state == "finished":
            self._console.print(heads_table(outcome["metrics"]))
        if state == "stopped":
            took = f", {stopped_after_s:.1f} s after the request" if stopped_after_s is not None else ""
            self._say(f"stopped after step {outcome['step']}{took}; to go on: {self._command()}")
        if state == "interrupted":
            self._say(f"interrupted; to go on: {self._command()}")
        self._print_json(EXIT_CODES[state])
        return EXIT_CODES[state]

    def _print_json(self, code: int) -> None:
        if self._as_json:
            print(
                json.dumps({"run_dir": str(self._run.path), "exit_code": code, **self._outcome()}),
                file=steady(sys.stdout),
            )

    def _outcome(self) -> dict[str, Any]:
        try:
            return read_json(self._run.outcome)
        except (OSError, ValueError):
            return {}
