"""Executes a launch: prepares the data, writes the run directory, runs attempts, reports the outcome."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO, cast

from rich.console import Console

from fmfsd.config import RunConfig
from fmfsd.errors import CheckError, RunFailedError
from fmfsd.run.run_dir import RunDir
from fmfsd.terminal import BrokenPipeSafeStream
from launcher.agent.hardware_record import read_hardware_by_host
from launcher.check.launch_checks import is_prepared
from launcher.config.launch_config import LaunchConfig
from launcher.display.launch_display import RunDisplay, build_heads_table
from launcher.plan.launch_plan import LaunchPlan, NodePlan
from launcher.resources.allocation import Allocation
from launcher.run_dir.log_follower import LogFollower
from launcher.run_dir.manifest import mask_command, new_launch_entry
from launcher.run_dir.run_lock import hold_run_lock
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_attempt, start_node_agent
from launcher.supervise.outcome import read_outcome, render_failure_page, write_outcome
from launcher.supervise.requeue import TIME_IS_UP, Requeue, reason_to_requeue
from launcher.supervise.restarts import RestartLoop, RunResult
from launcher.supervise.run_dir_init import is_finished, write_run_dir
from launcher.supervise.stop_requests import SECOND_INTERRUPT_S, StopRequests
from launcher.transport.agent_client import AgentProcess
from launcher.transport.local_commands import run_foreground

EXIT_CODES = {"finished": 0, "stopped": 75, "interrupted": 130}
SECOND_INTERRUPT_HINT = f"Ctrl-C again, at least {SECOND_INTERRUPT_S:g} s later, ends the run immediately"


def ignore_broken_pipe(stream: TextIO) -> IO[str]:
    """Wrap `stream` so that writing does not fail once its reader is gone."""
    return cast(IO[str], BrokenPipeSafeStream(stream))


def create_console(*, as_json: bool) -> Console:
    """Create the console for messages: on stdout, or on stderr if stdout is for JSON."""
    return Console(file=ignore_broken_pipe(sys.stderr if as_json else sys.stdout), highlight=False, soft_wrap=True)


class Execution:
    """Executes one launch that has passed `check`, with `warnings`; `check` is repeated once the data is prepared.

    `make_plan` returns the plan for a subset of the launch's node slots. Messages go to `console`; with `as_json` the
    outcome goes to stdout. `on_poll` is called ten times a second while an attempt runs. `job`: the batch job that this
    launch runs in, which is requeued when its time is up or a node is lost. `hardware`: of the hosts, if the nodes are
    other machines than this one. `slots`: the node slots of the first attempt; None: all.
    """

    def __init__(
        self,
        config: RunConfig,
        launch: LaunchConfig,
        run: RunDir,
        make_plan: Callable[[tuple[int, ...]], LaunchPlan],
        *,
        check: Callable[[], object],
        warnings: Sequence[str] = (),
        console: Console,
        as_json: bool = False,
        on_poll: Callable[[], None] = lambda: None,
        start_agent: Callable[[NodePlan], AgentProcess] = start_node_agent,
        job: Allocation | None = None,
        hardware: Mapping[str, Any] | None = None,
        slots: tuple[int, ...] | None = None,
    ) -> None:
        self._config, self._launch, self._run, self._make_plan, self._as_json = config, launch, run, make_plan, as_json
        self._check, self._warnings, self._on_poll, self._start_agent = check, warnings, on_poll, start_agent
        self._slots = slots or tuple(range(launch.nodes))
        self._plan, self._acknowledged, self._argv = make_plan(self._slots), False, list[str]()
        self._console, self._job, self._hardware = console, job, hardware

    def run_to_end(self, argv: Sequence[str]) -> int:
        """Run the launch and return its exit code.

        Raises CheckError before any worker is started, RunFailedError with the failure page afterwards.
        """
        self._argv = list(argv)
        if is_finished(self._config, self._run):
            self._report(f"run: {self._run.path}")
            self._report("this run is finished; nothing to do")
            return self._report_outcome("finished")
        requests = StopRequests(in_job=self._job is not None)
        with requests.install_handlers():
            self._prepare_data(requests)
            if requests.is_stop_requested:
                self._report("stopped before anything was started")
                return EXIT_CODES["interrupted"]
            fallback = self._launch.device == "auto" and self._plan.device == "cpu"
            self._report(f"run: {self._run.path}")
            self._report(self._plan.summary() + (" (no GPU is visible)" if fallback else ""))
            for text in self._warnings:
                self._report(f"warning: {text}")
            with hold_run_lock(self._run):
                requeue = Requeue.create(self._job, self._newest_step) if self._job and self._job.is_batch else None
                self._write_run_dir()
                result = self._run_attempts(requests)
                write_outcome(self._run, result, self._resume_command())
        if result.failure is not None:
            self._fail(result, requeue, requests)
        code = self._report_outcome(result.attempt.state, result.attempt.stopped_after_s)
        if requeue is not None and result.attempt.state == "stopped" and requests.time_is_up:
            requeue.requeue_job_or_warn(TIME_IS_UP, self._report, self._resume_command())
        return code

    def _fail(self, result: RunResult, requeue: Requeue | None, requests: StopRequests) -> NoReturn:
        page = render_failure_page(self._run, result, self._resume_command())
        if requeue is not None and (why := reason_to_requeue(result, requests)):
            self._report(page)
            requeue.requeue_job_or_warn(why, self._report, self._resume_command())
        self._print_json(RunFailedError.exit_code)
        raise RunFailedError(page)

    def _newest_step(self) -> int:
        return self._run.newest_step() or 0

    def _report(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _prepare_data(self, requests: StopRequests) -> None:
        if not self._plan.prepare or is_prepared(self._config):
            return
        code = run_foreground(self._plan.prepare, stop=lambda: requests.is_stop_requested)
        if not requests.is_stop_requested:
            if code:
                raise CheckError(f"the data set was not prepared (exit code {code}); nothing was started")
            self._check()

    def _write_run_dir(self) -> None:
        job = self._job.to_dict() if self._job else None
        entry = new_launch_entry(self._argv, hardware=self._hardware or read_hardware_by_host(), job=job)
        write_run_dir(self._config, self._run, self._plan, self._launch, entry, report=self._report)

    def _run_attempts(self, requests: StopRequests) -> RunResult:
        recovery = RestartLoop(
            launch=self._launch,
            run=self._run,
            requests=requests,
            make_plan=self._make_plan,
            start=partial(self._run_attempt, requests, self._log_follower()),
            report=self._report,
            shards=self._config.data.shards,
            slots=self._slots,
        )
        return recovery.run_until_end()

    def _log_follower(self) -> LogFollower | None:
        """Return a follower of other machines' logs; None in a batch job, whose log is in the same folder."""
        is_in_job_log = self._job is not None and not self._console.is_terminal
        return None if self._plan.is_here or is_in_job_log else LogFollower(self._run)

    def _run_attempt(self, requests: StopRequests, logs: LogFollower | None, plan: LaunchPlan) -> Attempt:
        workers = plan.num_workers
        run_display = RunDisplay(self._console, self._run, grace_s=self._launch.grace_s, num_workers=workers, logs=logs)
        with run_display as display:
            return run_attempt(
                plan,
                self._run,
                grace_s=self._launch.grace_s,
                hang_timeout_s=self._launch.hang_timeout_s,
                requests=requests,
                on_poll=partial(self._update, display, requests),
                start_agent=self._start_agent,
            )

    def _update(self, display: RunDisplay, requests: StopRequests) -> None:
        if requests.is_stop_requested and not self._acknowledged:
            self._acknowledged = True
            stopping = f"stopping with a checkpoint, within {self._launch.grace_s:g} s"
            with_checkpoint = stopping if self._job else f"{stopping}; {SECOND_INTERRUPT_HINT}"
            self._report("ending immediately, as requested" if requests.interrupted else with_checkpoint)
        display.update()
        self._on_poll()

    def _resume_command(self) -> str:
        """Return the command that resumes this run: this launch's, or `resume` if this launch's contains secrets."""
        argv = [Path(self._argv[0]).name, *mask_command(self._argv[1:])]
        if argv[1:] != self._argv[1:]:
            argv[1:] = ["resume", str(self._run.path)]
        names_run = argv[1:2] == ["resume"] or any(part.partition("=")[0] == "--run-dir" for part in argv)
        return shlex.join(argv if names_run else [*argv, "--run-dir", str(self._run.path)])

    def _report_outcome(self, state: str, stopped_after_s: float | None = None) -> int:
        outcome = read_outcome(self._run)
        if state == "finished" and outcome["metrics"].keys() - {"train"}:
            self._console.print(build_heads_table(outcome["metrics"]))
        if state == "stopped":
            took = f", {stopped_after_s:.1f} s after the request" if stopped_after_s is not None else ""
            self._report(f"stopped after step {outcome['step']}{took}; to resume: {self._resume_command()}")
        if state == "interrupted":
            self._report(f"interrupted; to resume: {self._resume_command()}")
        self._print_json(EXIT_CODES[state])
        return EXIT_CODES[state]

    def _print_json(self, code: int) -> None:
        if self._as_json:
            print(
                json.dumps({"run_dir": str(self._run.path), "exit_code": code, **read_outcome(self._run)}),
                file=ignore_broken_pipe(sys.stdout),
            )
