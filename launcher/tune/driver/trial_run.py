"""A trial's run: an ordinary one, carried out in a thread of its own for whoever waits for what it measures."""

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
from launcher.agent.hardware import hardware_here
from launcher.agent.resources import Resources
from launcher.check import data_checks
from launcher.check.launch_checks import total_steps
from launcher.config.launch_config import LaunchConfig
from launcher.plan.plan import LaunchPlan, NodePlan, plan_run
from launcher.resources.site import Site
from launcher.run_dir.manifest import launch_entry
from launcher.run_dir.record_follower import RecordFollower
from launcher.run_dir.run_lock import BusyError, sole_owner
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_plan, start_planned
from launcher.supervise.outcome import page_of, write_last_word
from launcher.supervise.restarts import Ended, Recovery
from launcher.supervise.run_dir_init import is_finished, write_run_dir
from launcher.supervise.stop_requests import Requests
from launcher.transport.agent_client import Link
from launcher.tune.space.metrics import SPLIT, costs_by_name
from launcher.tune.sweep.trial_spec import TrialOrder

State = Literal["running", "finished", "stopped", "failed"]
HELD_S = 60.0
"""For that process to find out."""
LOOK_S = 0.5
_STATES: Mapping[str, State] = {"finished": "finished", "failed": "failed"}
"""All others are stops: to one that was asked for, what is lost is not told apart."""


@dataclass(frozen=True)
class Machines:
    """Where a trial's nodes are, and what starts the agent of one."""

    site: Site
    start_agent: Callable[[NodePlan], Link] = start_planned

    @classmethod
    def here(cls, order: TrialOrder, environment: Mapping[str, str]) -> "Machines":
        """This one, of which a trial has some cores, whichever these are, and the GPUs that `environment` shows."""
        found, cores = Resources.detect(environment), order.cores * order.launch.nodes
        return cls(Site(replace(found, cores=cores, core_numbers=())))


class TrialRun:
    """Begins at once. Ends by itself, when the sweep is asked to stop, or by `end_now`."""

    def __init__(self, order: TrialOrder, machines: Machines) -> None:
        self._order, self._machines, self._run = order, machines, order.run
        self._requests = Requests(others=(order.sweep_dir.coordination.stop_request,))
        self._follower, self._found = RecordFollower(self._run), dict[int, dict[str, float]]()
        self._costs, self._last_step = dict[str, float](), -math.inf
        self.state: State = "running"
        self.cause = ""
        """Why it failed, in one line."""
        self._thread = threading.Thread(target=self._carry_out, name=f"trial {order.name}")
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """And nothing of it is left."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> None:
        """For its end, so long at most."""
        self._thread.join(timeout_s)

    def end_now(self) -> None:
        """Without a checkpoint. Returns when nothing of it is left."""
        self._requests.interrupted = True
        self._requests.ask()
        self._thread.join()

    def records(self, after: int) -> list[dict[str, float]]:
        """What was measured on the held-out samples after each epoch later than `after`, in order.

        None is told before all its values are known, nor the last epoch's before the run has ended as it should.
        """
        ended = self.has_ended
        with suppress(OSError, ValueError, KeyError):
            for record in self._follower.look():
                if record["split"] == SPLIT:
                    self._found[record["epoch"]] = record
        return [
            self._by_name(record)
            for epoch, record in sorted(self._found.items())
            if epoch > after and (ended or record["step"] < self._last_step)
        ]

    def last_record(self) -> dict[str, float]:
        """What was last measured; empty if nothing was."""
        return (self.records(0) or [{}])[-1]

    def seconds(self) -> float:
        """That all its attempts have taken so far, without those whose coordinator was killed."""
        found = list[dict[str, Any]]()
        for number in range(1, self._run.last_attempt() + 1):
            with suppress(OSError, ValueError):
                found.append(read_json(self._run.attempt(number)))
        ends = [each["ended"] or each["started"] for each in found]
        if found and found[-1]["state"] == "running" and not self.has_ended:
            ends[-1] = time.time()
        return sum(end - each["started"] for each, end in zip(found, ends, strict=True))

    def _by_name(self, record: Mapping[str, Any]) -> dict[str, float]:
        measured = {name: value for name, value in record.items() if name.endswith("_top1") or name == "loss"}
        return {
            "epoch": record["epoch"],
            **{f"{SPLIT}/{name}": value for name, value in measured.items()},
            **self._costs,
        }

    def _carry_out(self) -> None:
        try:
            self._try()
        except Exception as error:  # whoever waits must hear of it
            self.cause = str(error) if isinstance(error, FmfsdError) else f"{type(error).__name__}: {error}"
            self._say(traceback.format_exc())
            self.state = "failed"

    def _try(self) -> None:
        order = self._order
        config = load_config(str(order.sweep_dir.config), order.overrides)
        launch = self._settled()
        if problems := list(data_checks.not_divided(config, launch, self._machines.site)):
            raise ConfigError(problems)
        if order.wants_costs:
            self._costs = costs_by_name(config, self._words(), launch, self._machines.site, order.environment)
        self._last_step = total_steps(config) or math.inf
        if is_finished(config, self._run):
            self.state = "finished"
            return
        with ExitStack() as stack:
            if not self._taken(stack):
                self.state = "stopped"
                return
            ended = self._attempts(config, launch)
            write_last_word(self._run, ended, self._command())
        if ended.failure is not None:
            self.cause = ended.failure.cause
            self._say(page_of(self._run, ended, self._command()))
        self.state = self._state_after(ended)

    def _state_after(self, ended: Ended) -> State:
        """Stopped also if it failed while it was to stop, as by exceeding the grace, and another attempt may help."""
        if self._requests.stop and ended.failure is not None and ended.failure.worth_another_attempt:
            return "stopped"
        return _STATES.get(ended.attempt.state, "stopped")

    def _taken(self, stack: ExitStack) -> bool:
        """The run, once a process that Ray has cut off from it has let it go; not if a stop is asked for before that.

        BusyError if it does not let go.
        """
        deadline = time.monotonic() + HELD_S
        while not self._requests.stop:
            try:
                stack.enter_context(sole_owner(self._run))
                return True
            except BusyError:
                if time.monotonic() > deadline:
                    raise
            self._requests.wait(LOOK_S, self._order.sweep_dir.coordination.stop_request)
        return False

    def _settled(self) -> LaunchConfig:
        """The launch with what its machines offer, so that it can be done again elsewhere; without torchrun."""
        asked = self._order.launch
        device, workers = self._machines.site.placement(asked)
        return replace(asked, device=device, gpus=workers, starter="direct", run_dir=self._run.path)

    def _attempts(self, config: RunConfig, launch: LaunchConfig) -> Ended:
        order, run = self._order, self._run
        plan_of = partial(plan_run, launch, self._machines.site, run, environment=order.environment, cwd=order.cwd)
        plan = plan_of(tuple(range(launch.nodes)))
        entry = launch_entry(self._argv(launch), hardware=hardware_here() if plan.is_here else {})
        write_run_dir(config, run, plan, launch, entry, say=self._say)
        start = partial(self._attempt, launch)
        shards = config.data.shards
        return Recovery(launch, run, self._requests, plan_of, start, self._say, shards).to_the_end()

    def _attempt(self, launch: LaunchConfig, plan: LaunchPlan) -> Attempt:
        return run_plan(
            plan,
            self._run,
            grace_s=launch.grace_s,
            hang_timeout_s=launch.hang_timeout_s,
            requests=self._requests,
            watch=lambda: None,
            start_agent=self._machines.start_agent,
        )

    def _argv(self, launch: LaunchConfig) -> list[str]:
        """What would do the same by itself."""
        where = {"--nodes": launch.nodes, "--gpus": launch.gpus, "--device": launch.device}
        how = {"--starter": launch.starter, "--run-dir": self._run.path}
        options = (word for option in {**where, **how}.items() for word in map(str, option))
        return ["fmfsd-launch", *self._words(), *options]

    def _words(self) -> list[str]:
        overrides = (word for override in self._order.overrides for word in ("--set", override))
        return [str(self._order.sweep_dir.config), *overrides]

    def _command(self) -> str:
        return f"fmfsd-launch resume {self._run.path}"

    def _say(self, text: str) -> None:
        """Into a log, as nobody looks on; best effort."""
        with suppress(OSError), self._run.said.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")
