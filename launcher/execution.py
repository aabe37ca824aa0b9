"""Carries a plan out: prepares the data, writes the run's folder, runs the attempt, and says how it ended."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, cast

from filelock import FileLock, Timeout
from rich.console import Console

from fmfsd.config import TrainConfig, dump_config, load_config
from fmfsd.errors import CheckError, RunFailedError
from fmfsd.files import read_json, write_json, write_whole
from fmfsd.rundir import RunDir
from fmfsd.terminal import SteadyStream
from launcher.config import LaunchConfig
from launcher.display import RunDisplay, heads_table
from launcher.failures import Failure, first_failure, page
from launcher.hosts.local import run_here
from launcher.manifest import manifest
from launcher.plan import LaunchPlan
from launcher.supervise import SECOND_INTERRUPT_S, Attempt, Requests, run_plan

EXIT_CODES = {"finished": 0, "stopped": 75, "interrupted": 130}
AGAIN = f"Ctrl-C again, {SECOND_INTERRUPT_S:g} s later or more, ends at once"


class Execution:
    """One launch that has passed `check`, which is called again once the data is prepared.

    With `as_json`, stdout is for JSON and human words go to stderr.
    """

    def __init__(
        self,
        config: TrainConfig,
        launch: LaunchConfig,
        run: RunDir,
        plan: LaunchPlan,
        *,
        check: Callable[[], None],
        as_json: bool,
    ) -> None:
        self._config, self._launch, self._run, self._plan, self._as_json = config, launch, run, plan, as_json
        self._check, self._acknowledged = check, False
        self._out = cast(IO[str], SteadyStream(sys.stdout))
        words = cast(IO[str], SteadyStream(sys.stderr)) if as_json else self._out
        self._console = Console(file=words, highlight=False, soft_wrap=True)

    def run_to_end(self, argv: Sequence[str]) -> int:
        """The exit code. Raises CheckError while no worker is started, RunFailedError with the failure page after."""
        if self._outcome().get("state") == "finished":
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
            with self._alone():
                self._write_run_dir(argv)
                attempt = self._attempt(requests)
                failure = self._write_outcome(attempt)
        if failure is not None:
            self._print_json(RunFailedError.exit_code)
            raise RunFailedError(page(self._run, failure))
        return self._conclude(attempt.state)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the run's lock. CheckError if another launch does; the kernel takes it from one that was killed."""
        try:
            self._run.create()
            lock = FileLock(self._run.lock, timeout=0)
            lock.acquire()
        except Timeout as error:
            raise CheckError(
                f"{self._run.path}: {self._other_launch()}; wait for it, or choose another --run-dir"
            ) from error
        except OSError as error:
            raise CheckError(f"the run directory can't be written: {error}") from error
        with lock:
            yield

    def _other_launch(self) -> str:
        number = self._run.last_attempt()
        try:
            minutes = (time.time() - read_json(self._run.attempt(number))["started"]) / 60
        except (OSError, ValueError, KeyError):
            return "another launch is at work there"
        return f"another launch is at work there (attempt {number}, started {minutes:.0f} minutes ago)"

    def _prepare(self, requests: Requests) -> None:
        if not self._plan.prepare:
            return
        code = run_here(self._plan.prepare, stop=lambda: requests.stop)
        if not requests.stop:
            if code:
                raise CheckError(f"the data set was not prepared (exit code {code}); nothing was started")
            self._check()

    def _write_run_dir(self, argv: Sequence[str]) -> None:
        try:
            if self._run.config.exists():
                self._require_own_run()
            else:
                write_json(self._run.manifest, manifest(self._config, argv))
                write_whole(self._run.config, dump_config(self._config))
            write_whole(self._run.plan, self._plan.to_json())
        except OSError as error:
            raise CheckError(f"the run directory can't be written: {error}") from error

    def _require_own_run(self) -> None:
        """Between the check and the lock another launch may have begun a run of its own here."""
        if self._launch.resume == "never" or load_config(str(self._run.config)) != self._config:
            raise CheckError(f"{self._run.path}: another launch has just begun a run there: choose another --run-dir")

    def _attempt(self, requests: Requests) -> Attempt:
        with RunDisplay(self._console, self._run) as display:
            watch = partial(self._watch, display, requests)
            return run_plan(self._plan, self._run, grace_s=self._launch.grace_s, requests=requests, watch=watch)

    def _watch(self, display: RunDisplay, requests: Requests) -> None:
        if requests.stop and not self._acknowledged:
            self._acknowledged = True
            self._say(f"stopping with a checkpoint, within {self._launch.grace_s:g} s; {AGAIN}")
        display.update()

    def _write_outcome(self, attempt: Attempt) -> Failure | None:
        """What is left to say when the workers have not said how the run ended; the failure, if it is one."""
        if attempt.state not in ("failed", "interrupted"):
            return None
        failure = first_failure(self._run, attempt) if attempt.state == "failed" else None
        why = {"cause": failure.cause, "victims": list(failure.victims)} if failure else {}
        resumable = failure is None or failure.resumable
        content = {"state": attempt.state, "attempt": attempt.number, **why, "resumable": resumable}
        write_json(self._run.outcome, content)
        return failure

    def _conclude(self, state: str) -> int:
        outcome = self._outcome()
        if state == "finished":
            self._console.print(heads_table(outcome["metrics"]))
        way_on = f"the same command with --run-dir {self._run.path} goes on"
        if state == "stopped":
            self._say(f"stopped after step {outcome['step']}; {way_on}")
        if state == "interrupted":
            self._say(f"interrupted; {way_on}")
        self._print_json(EXIT_CODES[state])
        return EXIT_CODES[state]

    def _print_json(self, code: int) -> None:
        if self._as_json:
            print(json.dumps({"run_dir": str(self._run.path), "exit_code": code, **self._outcome()}), file=self._out)

    def _outcome(self) -> dict[str, Any]:
        try:
            return read_json(self._run.outcome)
        except (OSError, ValueError):
            return {}
