"""The outer process of a sweep, without Ray: starts its driver, shows how it goes, and starts it anew if it falls."""

import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console

from fmfsd.errors import CheckError, RunFailedError
from fmfsd.files import read_json
from launcher.agent.ties import die_with_me as _ties  # noqa: F401
from launcher.attempt import Attempt
from launcher.environment import travelling
from launcher.execution import AGAIN, EXIT_CODES, console_of
from launcher.failures import Failure, first_failure, page
from launcher.hosts.helpers import run_here
from launcher.plan import ATTEMPT, SCRATCH, LaunchPlan, NodePlan
from launcher.recovery import LOOK_S, Restarts
from launcher.requests import Requests
from launcher.supervise import run_plan
from launcher.tune.begun import Begun
from launcher.tune.display import SweepDisplay, final_table
from launcher.tune.history import History
from launcher.tune.shape import Shape
from launcher.tune.space import Space
from launcher.tune.sweep_dir import SweepDir

HANG_S = 120.0
"""Tune's loop goes round several times a second."""
BEYOND_GRACE_S = 30.0
"""From the end of the last trial to that of Ray."""
ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has measured nothing
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nobody reads Tune's own state
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
}
"""What Ray and Tune are told."""
EXISTING = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""With which a cluster that is there is reached, as its owner has them set."""


class Coordination:
    """Of one sweep that this process owns."""

    def __init__(
        self, sweep: SweepDir, begun: Begun, space: Space, environment: Mapping[str, str], *, as_json: bool
    ) -> None:
        self._sweep, self._begun, self._space, self._environment = sweep, begun, space, environment
        self._console, self._as_json = console_of(as_json=as_json), as_json
        self._run, self._acknowledged = sweep.coordination, False

    def plan(self) -> LaunchPlan:
        """One process, which starts all that Ray needs."""
        argv = (sys.executable, "-P", "-m", "launcher.tune.driver", str(self._sweep.path), ATTEMPT, SCRATCH)
        environment = {**travelling(self._environment), **ENVIRONMENT, **self._credentials()}
        node = NodePlan(node=0, argv=argv, env=environment, cwd=str(self._sweep.path))
        return LaunchPlan(str(self._sweep.path), "cpu", 1, (node,), longest_scratch=RAY_FOLDER_CHARACTERS)

    def _credentials(self) -> dict[str, str]:
        if self._begun.options.ray_address is None:
            return {"RAY_AUTH_TOKEN_PATH": str(self._sweep.token)}
        return {name: self._environment[name] for name in EXISTING if name in self._environment}

    def run_to_end(self, *, prepare: tuple[str, ...], shape: Shape | None, warnings: Sequence[str]) -> int:
        """The exit code. Raises RunFailedError with the failure page."""
        requests = Requests()
        with requests.heard(), self._token():
            if prepare and (code := run_here(prepare, stop=lambda: requests.stop)) and not requests.stop:
                raise CheckError(f"the data set was not prepared (exit code {code}); nothing was started")
            self._introduce(shape, warnings)
            attempt, failure, refusal = self._attempts(requests)
        if failure is not None:
            command = f"fmfsd-tune --resume {self._sweep.path}"
            history = f"no attempt follows attempt {attempt.number}: {refusal}"
            raise RunFailedError(page(self._run, failure, history=history, command=command))
        return self._conclude(attempt.state)
