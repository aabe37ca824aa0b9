"""A trial as Ray Tune sees it: an actor that tells what its run measures, one evaluation a step."""

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from ray import tune

from fmfsd.errors import CheckError
from fmfsd.system.file_locks import choose_method
from launcher.agent.network import MACHINES_OWN, own_variables
from launcher.config.launch_config import LaunchConfig
from launcher.tune.driver.trial_run import Machines, TrialRun
from launcher.tune.ray.agents import Crew
from launcher.tune.sweep.trial_spec import TrialOrder

LOOK_S = 0.1


def placement(launch: LaunchConfig, cores: int, gpus: int) -> Any:
    """One bundle a node, of so many cores and GPUs each, packed on as few machines as possible."""
    bundle = {"CPU": float(cores), **({"GPU": float(gpus)} if gpus else {})}
    return tune.PlacementGroupFactory([bundle] * launch.nodes, strategy="PACK")


class Trial(tune.Trainable):
    """Never fails in Ray's sense: a run has attempts of its own, and what they come to is told as a result."""

    _run: TrialRun | None
    _refusal: str
    """Why there is no run."""
    _crew: Crew | None
    """Of a trial with more than one node."""
    _told: int
    """The last epoch whose evaluation was told."""

    def setup(self, config: Mapping[str, Any]) -> None:
        """`config` has a TrialOrder's JSON, as text, under `order`."""
        os.umask(0o077)
        choose_method(os.environ)
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """The next evaluation, or how the run has ended: state, cause, seconds, and the last metrics there are."""
        if (run := self._run) is None:
            return {"state": "failed", "cause": self._refusal, "seconds": 0.0, "done": True}
        while not (found := run.records(self._told)) and not run.has_ended:
            run.wait(LOOK_S)
        found = found or run.records(self._told)
        shown = found[0] if found else run.last_record()
        self._told = max(self._told, int(shown.get("epoch", 0)))
        is_last = run.has_ended and len(found) <= 1
        state = run.state if is_last else "running"
        how = {"state": state, "cause": run.cause if is_last else "", "seconds": run.seconds()}
        return {"epoch": self._told, **shown, **how, "done": is_last}

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """The next trial, in this same actor."""
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Returns when nothing of the run is left."""
        if self._run is not None:
            self._run.end_now()
        if self._crew is not None:
            self._crew.close()

    def save_checkpoint(self, _folder: str) -> dict[str, Any]:
        """Nothing: the run keeps its own. Tune asks for it at the end of each trial, and before a pause."""
        return {}

    def load_checkpoint(self, _content: Any) -> None:
        """Nothing: `setup` has gone on from the run's own."""

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._run, self._crew = None, None
        try:
            order = TrialOrder.from_json(_completed(json.loads(config["order"])))
        except CheckError as error:  # as a secret that this machine lacks
            self._refusal = f"on {socket.gethostname()}: {error}"
            return
        self._told = order.reported
        self._crew = Crew(os.environ) if order.launch.nodes > 1 else None
        machines = Machines.here(order, os.environ)
        if self._crew is not None:
            machines = Machines(self._crew.site(order.cores), self._crew.start_agent)
        self._run = TrialRun(order, machines)


def _completed(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "environment": {**_as_here(told["environment"]), **_secrets(told)}}


def _as_here(environment: Mapping[str, str]) -> dict[str, str]:
    """With what this machine knows better than the one that the sweep was started on."""
    own = own_variables(os.environ)
    return {**{name: value for name, value in environment.items() if name not in MACHINES_OWN}, **own}


def _secrets(told: Mapping[str, Any]) -> dict[str, str]:
    """What workers are to get and no file may hold: this process has them from the one that started Ray."""
    wanted = (name for name, value in told["launch"]["extra_env"].items() if value is None)
    return {name: os.environ[name] for name in wanted if name in os.environ}
