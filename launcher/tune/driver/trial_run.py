"""The run of a trial: an ordinary launch, in a separate thread of the trial's actor."""

import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from fmfsd.config import RunConfig, load_config
from fmfsd.errors import ConfigError, FmfsdError
from fmfsd.system.atomic_files import read_json
from launcher.agent.available_resources import Resources
from launcher.agent.hardware_record import read_hardware_by_host
from launcher.check import data_checks
from launcher.check.launch_checks import total_steps
from launcher.config.launch_config import LaunchConfig
from launcher.plan.launch_plan import LaunchPlan, NodePlan, plan_run
from launcher.resources.site import Site
from launcher.run_dir.manifest import new_launch_entry
from launcher.run_dir.record_follower import RecordFollower
from launcher.run_dir.run_lock import RunInUseError, hold_run_lock
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_attempt, start_node_agent
from launcher.supervise.outcome import render_failure_page, write_outcome
from launcher.supervise.restarts import RestartLoop, RunResult
from launcher.supervise.run_dir_init import is_finished, write_run_dir
from launcher.supervise.stop_requests import StopRequests
from launcher.transport.agent_client import AgentConnection
from launcher.tune.space.metrics import SPLIT, probe_cost_metrics
from launcher.tune.sweep.trial_spec import TrialSpec

TrialRunState = Literal["running", "finished", "stopped", "failed"]
LOCK_TIMEOUT_S = 60.0
"""Time for a process of an earlier start to release the run lock."""
POLL_S = 0.5
_STATE_OF_ATTEMPT: Mapping[str, TrialRunState] = {"finished": "finished", "failed": "failed"}
"""All other states of an attempt count as stopped."""


@dataclass(frozen=True)
class TrialMachines:
    """The machines of a trial's nodes, and the function that starts a node's agent."""

    site: Site
    start_agent: Callable[[NodePlan], AgentConnection] = start_node_agent

    @classmethod
    def local(cls, spec: TrialSpec, environment: Mapping[str, str]) -> "TrialMachines":
        """Return this machine with the trial's number of cores, not pinned, and the GPUs visible in `environment`."""
        detected, cores = Resources.detect(environment), spec.cores * spec.launch.nodes
        return cls(Site(replace(detected, cores=cores, core_numbers=())))


class TrialRun:
    """Starts at once. Ends when the run ends, after a stop request to the sweep, or by `stop_now`."""

    def __init__(self, spec: TrialSpec, machines: TrialMachines) -> None:
        self._spec, self._machines, self._run = spec, machines, spec.run
        self._requests = StopRequests(other_files=(spec.sweep_dir.coordinator_dir.stop_request,))
        self._follower, self._records = RecordFollower(self._run), dict[int, dict[str, float]]()
        self._costs, self._last_step = dict[str, float](), -math.inf
        self.state: TrialRunState = "running"
        self.cause = ""
        """Why the run failed, in one line."""
        self._thread = threading.Thread(target=self._run_safely, name=f"trial {spec.name}")
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """True once the run and all its processes have ended."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> None:
        """Wait until the run ends, at most `timeout_s` seconds."""
        self._thread.join(timeout_s)

    def stop_now(self) -> None:
        """Stop without a checkpoint, and return when all processes of the run have ended."""
        self._requests.interrupted = True
        self._requests.request_stop()
        self._thread.join()

    def new_records(self, after: int) -> list[dict[str, float]]:
        """Return the metrics on the validation split of each epoch later than `after`, in order.

        The last epoch is included only after the run has ended.
        """
        ended = self.has_ended
        with suppress(OSError, ValueError, KeyError):
            for record in self._follower.poll():
                if record["split"] == SPLIT:
                    self._records[record["epoch"]] = record
        return [
            self._by_name(record)
            for epoch, record in sorted(self._records.items())
            if epoch > after and (ended or record["step"] < self._last_step)
        ]

    def last_record(self) -> dict[str, float]:
        """Return the newest metrics, or an empty dict."""
        return (self.new_records(0) or [{}])[-1]

    def elapsed_s(self) -> float:
        """Return the duration of all attempts so far, without those whose coordinator was killed."""
        attempts = list[dict[str, Any]]()
        for number in range(1, self._run.last_attempt() + 1):
            with suppress(OSError, ValueError):
                attempts.append(read_json(self._run.attempt(number)))
        ends = [each["ended"] or each["started"] for each in attempts]
        if attempts and attempts[-1]["state"] == "running" and not self.has_ended:
            ends[-1] = time.time()
        return sum(end - each["started"] for each, end in zip(attempts, ends, strict=True))

    def _by_name(self, record: Mapping[str, Any]) -> dict[str, float]:
        measured = {name: value for name, value in record.items() if name.endswith("_top1") or name == "loss"}
        return {
            "epoch": record["epoch"],
            **{f"{SPLIT}/{name}": value for name, value in measured.items()},
            **self._costs,
        }

    def _run_safely(self) -> None:
        try:
            self._run_to_end()
        except Exception as error:  # the actor reports it as the trial's result
            self.cause = str(error) if isinstance(error, FmfsdError) else f"{type(error).__name__}: {error}"
            self._log(traceback.format_exc())
            self.state = "failed"

    def _run_to_end(self) -> None:
        spec = self._spec
        config = load_config(str(spec.sweep_dir.config), spec.overrides)
        launch = self._resolve_launch()
        if problems := list(data_checks.check_even_shares(config, launch, self._machines.site)):
            raise ConfigError(problems)
        if spec.wants_costs:
            self._costs = probe_cost_metrics(config, self._config_args(), launch, self._machines.site, spec.environment)
        self._last_step = total_steps(config) or math.inf
        if is_finished(config, self._run):
            self.state = "finished"
            return
        with ExitStack() as stack:
            if not self._acquire_lock(stack):
                self.state = "stopped"
                return
            end = self._run_attempts(config, launch)
            write_outcome(self._run, end, self._command())
        if end.failure is not None:
            self.cause = end.failure.cause
            self._log(render_failure_page(self._run, end, self._command()))
        self.state = self._state_after(end)

    def _state_after(self, end: RunResult) -> TrialRunState:
        """Return the state; a failure while stopping counts as stopped if another attempt may help."""
        if self._requests.is_stop_requested and end.failure is not None and end.failure.worth_another_attempt:
            return "stopped"
        return _STATE_OF_ATTEMPT.get(end.attempt.state, "stopped")

    def _acquire_lock(self, stack: ExitStack) -> bool:
        """Acquire the run lock; return False if a stop is requested before that.

        Wait for a process that Ray has cut off to release it. Raise BusyError if it does not.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not self._requests.is_stop_requested:
            try:
                stack.enter_context(hold_run_lock(self._run))
                return True
            except RunInUseError:
                if time.monotonic() > deadline:
                    raise
            self._requests.wait(POLL_S, self._spec.sweep_dir.coordinator_dir.stop_request)
        return False

    def _resolve_launch(self) -> LaunchConfig:
        """Return the launch config with explicit device and workers, so that it can be repeated; without torchrun."""
        launch = self._spec.launch
        device, workers = self._machines.site.placement(launch)
        return replace(launch, device=device, gpus=workers, starter="direct", run_dir=self._run.path)

    def _run_attempts(self, config: RunConfig, launch: LaunchConfig) -> RunResult:
        spec, run = self._spec, self._run
        plan_of = partial(plan_run, launch, self._machines.site, run, environment=spec.environment, cwd=spec.cwd)
        plan = plan_of(tuple(range(launch.nodes)))
        entry = new_launch_entry(self._argv(launch), hardware=read_hardware_by_host() if plan.is_here else {})
        write_run_dir(config, run, plan, launch, entry, report=self._log)
        start = partial(self._run_attempt, launch)
        shards = config.data.shards
        return RestartLoop(launch, run, self._requests, plan_of, start, self._log, shards).run_until_end()

    def _run_attempt(self, launch: LaunchConfig, plan: LaunchPlan) -> Attempt:
        return run_attempt(
            plan,
            self._run,
            grace_s=launch.grace_s,
            hang_timeout_s=launch.hang_timeout_s,
            requests=self._requests,
            on_poll=lambda: None,
            start_agent=self._machines.start_agent,
        )

    def _argv(self, launch: LaunchConfig) -> list[str]:
        """Return the command line that repeats this run without the sweep."""
        options = {
            "--nodes": launch.nodes,
            "--gpus": launch.gpus,
            "--device": launch.device,
            "--starter": launch.starter,
            "--run-dir": self._run.path,
        }
        return [
            "fmfsd-launch",
            *self._config_args(),
            *(part for option in options.items() for part in map(str, option)),
        ]

    def _config_args(self) -> list[str]:
        overrides = (part for override in self._spec.overrides for part in ("--set", override))
        return [str(self._spec.sweep_dir.config), *overrides]

    def _command(self) -> str:
        return f"fmfsd-launch resume {self._run.path}"

    def _log(self, text: str) -> None:
        """Append to the run's launch log; ignore errors."""
        with suppress(OSError), self._run.coordinator_log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")
