"""The coordinator of a sweep, a process without Ray: starts the driver, shows progress, restarts a failed driver."""

import json
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import NoReturn

from fmfsd.errors import CheckError, RunFailedError
from fmfsd.own_launcher import COMMAND
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import read_json, write_atomic
from launcher.agent.network import MACHINE_VARIABLES
from launcher.config.environment import forwarded_variables
from launcher.config.plain_text import to_single_line
from launcher.plan.launch_plan import LaunchPlan, NodePlan
from launcher.plan.placeholders import ADDRESS, ATTEMPT, INTERFACE, PORT, SCRATCH
from launcher.resources.allocation import Allocation
from launcher.resources.site import Site
from launcher.run_dir.sweep_dir import SweepDir
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_attempt
from launcher.supervise.execute_plan import EXIT_CODES, SECOND_INTERRUPT_HINT, create_console
from launcher.supervise.failure_report import find_first_failure
from launcher.supervise.outcome import render_failure_page, write_outcome
from launcher.supervise.requeue import TIME_IS_UP, Requeue, reason_to_requeue
from launcher.supervise.restarts import RestartBudget, RunResult
from launcher.supervise.stop_requests import StopRequests
from launcher.transport.local_commands import run_foreground
from launcher.tune.display.formatting import format_conclusions
from launcher.tune.display.live_table import SweepDisplay, build_final_table
from launcher.tune.ray.ray_environment import ENVIRONMENT
from launcher.tune.records.history import History
from launcher.tune.records.sweep_settings import SweepSettings
from launcher.tune.records.trial_resources import TrialResources
from launcher.tune.space.load import Space

DRIVER_HANG_TIMEOUT_S = 120.0
"""Hang timeout of the driver; Tune's loop runs several times a second."""
MAX_RAY_PATH_LENGTH = 36
"""Longest path of Ray's folder: Ray appends up to 70 characters, and a Unix socket path has at most 107."""
MAX_DRIVER_RESTARTS = 3
"""Driver restarts allowed without a new ledger fact in between; --max-failures limits restarts of a trial."""
RAY_SHUTDOWN_S = 30.0
"""Time for Ray to shut down after the last trial has ended, in addition to the grace."""
RAY_AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Environment variables for authentication with an existing Ray cluster, passed on as the caller has set them."""


class SweepCoordinator:
    """Coordinates one sweep, whose lock this process holds."""

    def __init__(
        self,
        sweep: SweepDir,
        settings: SweepSettings,
        space: Space,
        site: Site,
        environment: Mapping[str, str],
        *,
        as_json: bool = False,
        job: Allocation | None = None,
    ) -> None:
        self._sweep, self._settings, self._space, self._environment = sweep, settings, space, environment
        self._site, self._job = site, job
        self._console, self._as_json = create_console(as_json=as_json), as_json
        self._run, self._acknowledged = sweep.coordinator_dir, False

    def plan(self, slots: Sequence[int] | None = None) -> LaunchPlan:
        """Return the plan: the driver on the first of the `slots`, and a Ray worker node on each further one."""
        chosen = list(range(len(self._site.hosts) or 1)) if slots is None else list(slots)
        environment = {**self._shared_variables(), **ENVIRONMENT, "TMPDIR": SCRATCH, **self._credentials()}
        environment |= self._settings.launch.extra_env
        nodes = tuple(
            NodePlan(
                node=number,
                argv=self._driver_argv(len(chosen)) if number == 0 else self._ray_worker_argv(),
                env=environment,
                cwd=str(self._sweep.path),
                host=self._site.host(slot),
                agent=self._site.agent_command(self._site.host(slot), self._environment),
            )
            for number, slot in enumerate(chosen)
        )
        return LaunchPlan(str(self._sweep.path), "cpu", 1, nodes, max_scratch_length=MAX_RAY_PATH_LENGTH)

    def _shared_variables(self) -> dict[str, str]:
        """Return the caller's environment variables that apply to every machine of the search."""
        excluded = () if self._site.is_here else MACHINE_VARIABLES
        return {name: value for name, value in forwarded_variables(self._environment).items() if name not in excluded}

    def _driver_argv(self, machines: int) -> tuple[str, ...]:
        command = (*COMMAND, "launcher.tune.driver.driver", str(self._sweep.path), ATTEMPT, SCRATCH)
        resources = self._site.resources
        limits = ("--cores", str(resources.cores), "--gpus", str(len(resources.gpus)))
        head = ("--machines", str(machines), "--head", ADDRESS, PORT) if machines > 1 else ()
        return (*command, *limits, *head)

    def _ray_worker_argv(self) -> tuple[str, ...]:
        resources = self._site.resources
        limits = (str(resources.cores), str(len(resources.gpus)))
        return (*COMMAND, "launcher.tune.ray.ray_worker_node", ADDRESS, PORT, INTERFACE, SCRATCH, *limits)

    def _credentials(self) -> dict[str, str]:
        if self._settings.options.ray_address is None:
            return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._sweep.token)}
        return {name: self._environment[name] for name in RAY_AUTH_VARIABLES if name in self._environment}

    def run_to_end(self, *, prepare: tuple[str, ...], resources: TrialResources, warnings: Sequence[str]) -> int:
        """Run the sweep and return the exit code.

        Raise CheckError if nothing was started, and RunFailedError with the failure page afterwards.
        """
        requests = StopRequests(in_job=self._job is not None)
        with requests.install_handlers(), self._ray_token():
            self._print_intro(resources, warnings)
            if (
                prepare
                and (code := run_foreground(prepare, stop=lambda: requests.is_stop_requested))
                and not requests.is_stop_requested
            ):
                raise CheckError(f"preparing the data set failed with exit code {code}; nothing was started")
            requeue = Requeue.create(self._job, self._count_progress) if self._job and self._job.is_batch else None
            end = self._run_drivers(requests)
            write_outcome(self._run, end, self._command)
        if end.failure is not None:
            self._fail(end, requeue, requests)
        code = self._conclude(end.attempt.state)
        if requeue is not None and requests.time_is_up and end.attempt.state == "stopped":
            requeue.requeue_job_or_warn(TIME_IS_UP, self._print, self._command)
        return code

    def _fail(self, end: RunResult, requeue: Requeue | None, requests: StopRequests) -> NoReturn:
        page = render_failure_page(self._run, end, self._command)
        if requeue is not None and (why := reason_to_requeue(end, requests)):
            self._print(page)
            requeue.requeue_job_or_warn(why, self._print, self._command)
        self._print_json(RunFailedError.exit_code)
        raise RunFailedError(page)

    def _count_progress(self) -> int:
        """Return a number that grows with each ledger fact and each training step."""
        steps = (RunDir(folder).newest_step() or 0 for folder in self._sweep.trials.iterdir())
        return self._sweep.ledger.stat().st_size + sum(steps)

    def _print_intro(self, resources: TrialResources, warnings: Sequence[str]) -> None:
        options, held_out = self._settings.options, self._settings.held_out
        self._print(f"sweep: {self._sweep.path}")
        self._print(f"{options.trials} trials, {resources}")
        if held_out:
            self._print(
                f"{held_out} training samples are held out for validation; the test set is only for the winners"
            )
        for text in warnings:
            self._print(f"warning: {text}")

    @contextmanager
    def _ray_token(self) -> Iterator[None]:
        """Write a new token for the sweep's private Ray, and delete it at the end."""
        if self._settings.options.ray_address is not None:
            yield
            return
        write_atomic(self._sweep.token, secrets.token_hex(32))
        try:
            yield
        finally:
            with suppress(OSError):
                self._sweep.token.unlink(missing_ok=True)

    def _run_drivers(self, requests: StopRequests) -> RunResult:
        """Run one driver after another until one finishes, is stopped, or may not be restarted."""
        restarts = RestartBudget(MAX_DRIVER_RESTARTS, progress_unit="new fact", option="")
        slots = tuple(range(len(self._site.hosts) or 1))
        while True:
            ledger_bytes = self._sweep.ledger.stat().st_size
            attempt = self._run_driver(requests, self.plan(slots))
            if attempt.state != "failed":
                return RunResult(attempt)
            failure = find_first_failure(self._run, attempt)
            attempt.cause = failure.cause
            attempt.write_record()
            stop = "a stop was requested" if requests.is_stop_requested else ""
            remaining = self._remaining_slots(slots, attempt)
            progressed = self._sweep.ledger.stat().st_size > ledger_bytes or remaining != slots
            if refusal := stop or restarts.count_restart(failure, progressed=progressed):
                return RunResult(attempt, failure, refusal)
            self._print(
                f"the sweep's driver failed: {failure.cause}; restarting it from the ledger in {restarts.backoff_s:g} s"
            )
            requests.wait(restarts.backoff_s, self._run.stop_request)
            slots = remaining

    def _remaining_slots(self, slots: tuple[int, ...], attempt: Attempt) -> tuple[int, ...]:
        """Return the slots of the machines whose agents are still there; all slots if every agent is gone.

        If every agent is gone, this machine has probably lost its network.
        """
        remaining = tuple(slot for slot, node in zip(slots, attempt.nodes, strict=True) if not node.is_gone)
        if remaining and remaining != slots:
            self._print(f"{len(remaining)} of {len(slots)} machines remain")
        return remaining or slots

    def _run_driver(self, requests: StopRequests, plan: LaunchPlan) -> Attempt:
        with SweepDisplay(self._console, self._sweep, self._settings.options, hidden=self._space.constants) as display:
            return run_attempt(
                plan,
                self._run,
                grace_s=self._settings.launch.grace_s + RAY_SHUTDOWN_S,
                hang_timeout_s=DRIVER_HANG_TIMEOUT_S,
                requests=requests,
                on_poll=partial(self._update_display, display, requests),
            )

    def _update_display(self, display: SweepDisplay, requests: StopRequests) -> None:
        if requests.is_stop_requested and not self._acknowledged:
            self._acknowledged = True
            grace_s = self._settings.launch.grace_s
            stopping = f"stopping: each trial saves a checkpoint within {grace_s:g} s; {SECOND_INTERRUPT_HINT}"
            self._print("stopping at once, as requested" if requests.interrupted else stopping)
        display.update()

    @property
    def _command(self) -> str:
        return shlex.join(["fmfsd-tune", "--resume", str(self._sweep.path)])

    def _conclude(self, state: str) -> int:
        if state == "finished":
            history = History.read(self._sweep.ledger, self._settings.options)
            self._console.print(build_final_table(history, self._space.constants))
            for text in format_conclusions(history, self._space.constants):
                self._print(text)
            if len(history.runs) < self._settings.options.trials:
                self._print(f"the space has only {len(history.runs)} different configs")
            for name, cause in history.failed_reruns.items():
                self._print(f"{name} failed: {to_single_line(cause)}; to run it again: {self._command}")
            self._print(self._report_text())
            self._print(f"to train the best config: {shlex.join(['fmfsd-launch', str(self._sweep.best)])}")
        else:
            self._print(f"{state}; to resume: {self._command}")
        self._print_json(EXIT_CODES[state])
        return EXIT_CODES[state]

    def _report_text(self) -> str:
        if self._sweep.has_report:
            return f"report: {self._sweep.report}"
        log, command = self._run.starter_log(0), shlex.join(["fmfsd", "report", str(self._sweep.path)])
        return f"warning: no report was written, see {log}; to write it: `{command}`"

    def _print_json(self, code: int) -> None:
        if self._as_json:
            summary = read_json(self._sweep.summary) if self._sweep.summary.exists() else {}
            print(json.dumps({"sweep_dir": str(self._sweep.path), "exit_code": code, **summary}))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)
