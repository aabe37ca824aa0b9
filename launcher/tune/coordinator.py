"""The outer process of a sweep, without Ray: starts its driver, shows how it goes, and starts it anew if it falls."""

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
from fmfsd.system.atomic_files import read_json, write_whole
from launcher.agent.network import MACHINES_OWN
from launcher.config.environment import travelling
from launcher.config.plain_text import in_a_line
from launcher.plan.placeholders import ADDRESS, ATTEMPT, INTERFACE, PORT, SCRATCH
from launcher.plan.plan import LaunchPlan, NodePlan
from launcher.resources.allocation import Allocation
from launcher.resources.site import Site
from launcher.run_dir.sweep_dir import SweepDir
from launcher.supervise.attempt import Attempt
from launcher.supervise.coordinator import run_plan
from launcher.supervise.failure_report import first_failure
from launcher.supervise.outcome import page_of, write_last_word
from launcher.supervise.requeue import TIME_IS_UP, Requeue, reason_to_requeue
from launcher.supervise.restarts import Ended, Restarts
from launcher.supervise.run_plan import AGAIN, EXIT_CODES, console_of
from launcher.supervise.stop_requests import Requests
from launcher.transport.local_commands import run_here
from launcher.tune.display.formatting import conclusions
from launcher.tune.display.live_table import SweepDisplay, final_table
from launcher.tune.ray.environment import ENVIRONMENT
from launcher.tune.records.history import History
from launcher.tune.records.sweep_settings import Begun
from launcher.tune.records.trial_resources import Shape
from launcher.tune.space.load import Space

HANG_S = 120.0
"""Tune's loop goes round several times a second."""
RAY_FOLDER_CHARACTERS = 36
"""Ray puts sockets at up to 70 characters below it, and a socket's path has 107 at most."""
DRIVERS = 3
"""So many may fall without a new fact between; --max-failures is about trials."""
BEYOND_GRACE_S = 30.0
"""From the end of the last trial to that of Ray."""
EXISTING = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""With which a cluster that is there is reached, as its owner has them set."""


class Coordination:
    """Of one sweep that this process owns."""

    def __init__(
        self,
        sweep: SweepDir,
        begun: Begun,
        space: Space,
        site: Site,
        environment: Mapping[str, str],
        *,
        as_json: bool = False,
        job: Allocation | None = None,
    ) -> None:
        self._sweep, self._begun, self._space, self._environment = sweep, begun, space, environment
        self._site, self._job = site, job
        self._console, self._as_json = console_of(as_json=as_json), as_json
        self._run, self._acknowledged = sweep.coordination, False

    def plan(self, slots: Sequence[int] | None = None) -> LaunchPlan:
        """On this machine one process, which starts all that Ray needs; on several, one on each of those `slots`."""
        chosen = list(range(len(self._site.hosts) or 1)) if slots is None else list(slots)
        environment = {**self._shared_variables(), **ENVIRONMENT, "TMPDIR": SCRATCH, **self._credentials()}
        environment |= self._begun.launch.extra_env
        nodes = tuple(
            NodePlan(
                node=number,
                argv=self._driver(len(chosen)) if number == 0 else self._joiner(),
                env=environment,
                cwd=str(self._sweep.path),
                host=self._site.host(slot),
                agent=self._site.agent(self._site.host(slot), self._environment),
            )
            for number, slot in enumerate(chosen)
        )
        return LaunchPlan(str(self._sweep.path), "cpu", 1, nodes, longest_scratch=RAY_FOLDER_CHARACTERS)

    def _shared_variables(self) -> dict[str, str]:
        """Those of the caller that are meant on every machine of the search."""
        not_theirs = () if self._site.is_here else MACHINES_OWN
        return {name: value for name, value in travelling(self._environment).items() if name not in not_theirs}

    def _driver(self, machines: int) -> tuple[str, ...]:
        start = (*COMMAND, "launcher.tune.driver.driver", str(self._sweep.path), ATTEMPT, SCRATCH)
        found = self._site.resources
        offered = ("--cores", str(found.cores), "--gpus", str(len(found.gpus)))
        head = ("--machines", str(machines), "--head", ADDRESS, PORT) if machines > 1 else ()
        return (*start, *offered, *head)

    def _joiner(self) -> tuple[str, ...]:
        found = self._site.resources
        offered = (str(found.cores), str(len(found.gpus)))
        return (*COMMAND, "launcher.tune.ray.ray_worker_node", ADDRESS, PORT, INTERFACE, SCRATCH, *offered)

    def _credentials(self) -> dict[str, str]:
        if self._begun.options.ray_address is None:
            return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._sweep.token)}
        return {name: self._environment[name] for name in EXISTING if name in self._environment}

    def run_to_end(self, *, prepare: tuple[str, ...], shape: Shape, warnings: Sequence[str]) -> int:
        """The exit code. Raises CheckError while nothing is started, RunFailedError with the failure page after."""
        requests = Requests(in_job=self._job is not None)
        with requests.heard(), self._own_token():
            self._introduce(shape, warnings)
            if prepare and (code := run_here(prepare, stop=lambda: requests.stop)) and not requests.stop:
                raise CheckError(f"the data set was not prepared (exit code {code}); nothing was started")
            requeue = Requeue.of(self._job, self._reached) if self._job and self._job.is_batch else None
            ended = self._attempts(requests)
            write_last_word(self._run, ended, self._command)
        if ended.failure is not None:
            self._fail(ended, requeue, requests)
        code = self._conclude(ended.attempt.state)
        if requeue is not None and requests.time_is_up and ended.attempt.state == "stopped":
            requeue.carry_out_or_warn(TIME_IS_UP, self._say, self._command)
        return code

    def _fail(self, ended: Ended, requeue: Requeue | None, requests: Requests) -> NoReturn:
        page = page_of(self._run, ended, self._command)
        if requeue is not None and (why := reason_to_requeue(ended, requests)):
            self._say(page)
            requeue.carry_out_or_warn(why, self._say, self._command)
        self._print_json(RunFailedError.exit_code)
        raise RunFailedError(page)

    def _reached(self) -> int:
        """Facts and steps."""
        steps = (RunDir(folder).newest_step() or 0 for folder in self._sweep.trials.iterdir())
        return self._sweep.ledger.stat().st_size + sum(steps)

    def _introduce(self, shape: Shape, warnings: Sequence[str]) -> None:
        options, held_out = self._begun.options, self._begun.held_out
        self._say(f"sweep: {self._sweep.path}")
        self._say(f"{options.trials} trials, {shape}")
        if held_out:
            self._say(f"{held_out} training samples are held out to judge by; the test set is for the winners alone")
        for text in warnings:
            self._say(f"warning: {text}")

    @contextmanager
    def _own_token(self) -> Iterator[None]:
        """Of a Ray of our own; what an earlier start has left of one is of no use."""
        if self._begun.options.ray_address is not None:
            yield
            return
        write_whole(self._sweep.token, secrets.token_hex(32))
        try:
            yield
        finally:
            with suppress(OSError):
                self._sweep.token.unlink(missing_ok=True)

    def _attempts(self, requests: Requests) -> Ended:
        """Drivers, one after the other, until one has said how the sweep ended."""
        restarts = Restarts(DRIVERS, gain="new fact", option="")
        slots = tuple(range(len(self._site.hosts) or 1))
        while True:
            known = self._sweep.ledger.stat().st_size
            attempt = self._attempt(requests, self.plan(slots))
            if attempt.state != "failed":
                return Ended(attempt)
            failure = first_failure(self._run, attempt)
            attempt.cause = failure.cause
            attempt.write()
            asked = "a stop was asked for" if requests.stop else ""
            left = self._left(slots, attempt)
            progressed = self._sweep.ledger.stat().st_size > known or left != slots
            if refusal := asked or restarts.refusal(failure, progressed=progressed):
                return Ended(attempt, failure, refusal)
            self._say(f"the search's driver fell: {failure.cause}; going on from the ledger in {restarts.pause_s:g} s")
            requests.wait(restarts.pause_s, self._run.stop_request)
            slots = left

    def _left(self, slots: tuple[int, ...], attempt: Attempt) -> tuple[int, ...]:
        """Machines to go on with: without those whose agents are gone, unless it is us who have lost all of them."""
        left = tuple(slot for slot, node in zip(slots, attempt.nodes, strict=True) if not node.is_gone)
        if left and left != slots:
            self._say(f"{len(left)} of {len(slots)} machines are left")
        return left or slots

    def _attempt(self, requests: Requests, plan: LaunchPlan) -> Attempt:
        with SweepDisplay(self._console, self._sweep, self._begun.options, hidden=self._space.constants) as display:
            return run_plan(
                plan,
                self._run,
                grace_s=self._begun.launch.grace_s + BEYOND_GRACE_S,
                hang_timeout_s=HANG_S,
                requests=requests,
                watch=partial(self._watch, display, requests),
            )

    def _watch(self, display: SweepDisplay, requests: Requests) -> None:
        if requests.stop and not self._acknowledged:
            self._acknowledged = True
            asks = f"stopping, each trial with a checkpoint, within {self._begun.launch.grace_s:g} s; {AGAIN}"
            self._say("ending at once, as asked" if requests.interrupted else asks)
        display.update()

    @property
    def _command(self) -> str:
        return shlex.join(["fmfsd-tune", "--resume", str(self._sweep.path)])

    def _conclude(self, state: str) -> int:
        if state == "finished":
            history = History.read(self._sweep.ledger, self._begun.options)
            self._console.print(final_table(history, self._space.constants))
            for text in conclusions(history, self._space.constants):
                self._say(text)
            if len(history.runs) < self._begun.options.trials:
                self._say(f"{len(history.runs)} trials are all that the space has")
            for name, cause in history.unconfirmed.items():
                self._say(f"{name} came to nothing, and is tried again by {self._command}: {in_a_line(cause)}")
            self._say(self._report_text())
            self._say(f"to train the best: {shlex.join(['fmfsd-launch', str(self._sweep.best)])}")
        else:
            self._say(f"{state}; to go on: {self._command}")
        self._print_json(EXIT_CODES[state])
        return EXIT_CODES[state]

    def _report_text(self) -> str:
        if self._sweep.has_report:
            return f"report: {self._sweep.report}"
        log, command = self._run.starter_log(0), shlex.join(["fmfsd", "report", str(self._sweep.path)])
        return f"warning: no report was written, {log} says why: `{command}` writes it"

    def _print_json(self, code: int) -> None:
        if self._as_json:
            found = read_json(self._sweep.summary) if self._sweep.summary.exists() else {}
            print(json.dumps({"sweep_dir": str(self._sweep.path), "exit_code": code, **found}))

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)
