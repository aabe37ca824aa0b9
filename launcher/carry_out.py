"""Carries a plan out: prepares the data, writes the run's folder, runs the attempt, and says how it ended."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from fmfsd.config import TrainConfig, dump_config
from fmfsd.errors import CheckError, RunFailedError
from fmfsd.files import read_json, write_json, write_whole
from fmfsd.rundir import RunDir
from launcher.config import LaunchConfig
from launcher.display import RunDisplay, heads_table
from launcher.failures import first_failure, page
from launcher.hosts.local import run_here
from launcher.manifest import manifest
from launcher.plan import LaunchPlan
from launcher.supervise import Attempt, Requests, run_plan

EXIT_CODES = {"finished": 0, "stopped": 75, "interrupted": 130}


class CarryOut:
    """One launch that has passed its checks. With `as_json`, stdout is for JSON and human words go to stderr."""

    def __init__(
        self, config: TrainConfig, launch: LaunchConfig, run: RunDir, plan: LaunchPlan, *, as_json: bool
    ) -> None:
        self._config, self._launch, self._run, self._plan, self._as_json = config, launch, run, plan, as_json
        self._console = Console(stderr=as_json, highlight=False, soft_wrap=True)

    def run_to_end(self, argv: Sequence[str]) -> int:
        """The exit code. Raises CheckError while no worker is started, RunFailedError with the failure page after."""
        self._say(f"run: {self._run.path}")
        if self._outcome().get("state") == "finished":
            self._say("this run is finished; nothing to do")
            return self._conclude("finished")
        fallback = self._launch.device == "auto" and self._plan.device == "cpu"
        self._say(self._plan.summary() + (" (no GPU is visible)" if fallback else ""))
        requests = Requests()
        with requests.heard():
            self._prepare(requests)
            if requests.stop:
                self._say("stopped before anything was started")
                return EXIT_CODES["interrupted"]
            self._write_run_dir(argv)
            attempt = self._attempt(requests)
        if attempt.state == "failed":
            self._fail(attempt)
        return self._conclude(attempt.state)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _prepare(self, requests: Requests) -> None:
        if (
            self._plan.prepare
            and (code := run_here(self._plan.prepare, stop=lambda: requests.stop))
            and not requests.stop
        ):
            raise CheckError(f"the data set was not prepared (exit code {code}); nothing was started")

    def _write_run_dir(self, argv: Sequence[str]) -> None:
        try:
            self._run.create()
            if not self._run.config.exists():
                write_json(self._run.manifest, manifest(self._config, argv))
                write_whole(self._run.config, dump_config(self._config))
            write_whole(self._run.plan, self._plan.to_json())
        except OSError as error:
            raise CheckError(f"the run directory can't be written: {error}") from error

    def _attempt(self, requests: Requests) -> Attempt:
        with RunDisplay(self._console, self._run) as display:
            return run_plan(
                self._plan, self._run, grace_s=self._launch.grace_s, requests=requests, watch=display.update
            )

    def _fail(self, attempt: Attempt) -> None:
        failure = first_failure(self._run, attempt)
        content = {"state": "failed", "attempt": attempt.number, "cause": failure.cause}
        write_json(self._run.outcome, {**content, "victims": list(failure.victims), "resumable": True})
        self._print_json(RunFailedError.exit_code)
        raise RunFailedError(page(self._run, failure))

    def _conclude(self, state: str) -> int:
        outcome = self._outcome()
        if state == "finished":
            self._console.print(heads_table(outcome["metrics"]))
        if state == "stopped":
            way_on = f"the same command with --run-dir {self._run.path} goes on"
            self._say(f"stopped after step {outcome['step']}; {way_on}")
        self._print_json(EXIT_CODES[state])
        return EXIT_CODES[state]

    def _print_json(self, code: int) -> None:
        if self._as_json:
            print(json.dumps({"run_dir": str(self._run.path), "exit_code": code, **self._outcome()}))

    def _outcome(self) -> dict[str, Any]:
        try:
            return read_json(self._run.outcome)
        except (OSError, ValueError):
            return {}
