"""The trainable of Ray Tune: an actor that runs a trial and reports one evaluation per step."""

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from ray import tune

from fmfsd.errors import CheckError
from fmfsd.system.file_locks import choose_lock_method
from launcher.agent.network import MACHINE_VARIABLES, select_machine_variables
from launcher.config.launch_config import LaunchConfig
from launcher.tune.driver.trial_run import TrialMachines, TrialRun
from launcher.tune.ray.agent_actors import PlacementGroupNodes
from launcher.tune.sweep.trial_spec import TrialSpec

POLL_S = 0.1


def build_placement_group(launch: LaunchConfig, cores: int, gpus: int) -> Any:
    """Return a placement group with one bundle per node of a trial, packed on as few machines as possible."""
    bundle = {"CPU": float(cores), **({"GPU": float(gpus)} if gpus else {})}
    return tune.PlacementGroupFactory([bundle] * launch.nodes, strategy="PACK")


class TrialActor(tune.Trainable):
    """Never fails in Ray's sense: the run restarts its workers itself, and its outcome is reported as a result."""

    _run: TrialRun | None
    _refusal: str
    """Why the run could not start."""
    _nodes: PlacementGroupNodes | None
    """Set for a trial with more than one node."""
    _reported_epoch: int
    """The last epoch whose evaluation was reported."""

    def setup(self, config: Mapping[str, Any]) -> None:
        """Start the trial. `config["order"]` is the JSON text of its specification."""
        os.umask(0o077)
        choose_lock_method(os.environ)
        self._start(config)

    def step(self) -> dict[str, Any]:
        """Return the next evaluation, or the outcome of the run: state, cause, seconds and the last metrics."""
        if (run := self._run) is None:
            return {"state": "failed", "cause": self._refusal, "seconds": 0.0, "done": True}
        while not (records := run.new_records(self._reported_epoch)) and not run.has_ended:
            run.wait(POLL_S)
        records = records or run.new_records(self._reported_epoch)
        record = records[0] if records else run.last_record()
        self._reported_epoch = max(self._reported_epoch, int(record.get("epoch", 0)))
        is_last = run.has_ended and len(records) <= 1
        state = run.state if is_last else "running"
        outcome = {"state": state, "cause": run.cause if is_last else "", "seconds": run.elapsed_s()}
        return {"epoch": self._reported_epoch, **record, **outcome, "done": is_last}

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Start the next trial in this actor."""
        self.cleanup()
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        """Kill the run, and return when all its processes have ended."""
        if self._run is not None:
            self._run.stop_now()
        if self._nodes is not None:
            self._nodes.close()

    def save_checkpoint(self, _folder: str) -> dict[str, Any]:
        """Save nothing: the run writes its own checkpoints."""
        return {}

    def load_checkpoint(self, _content: Any) -> None:
        """Load nothing: `setup` has resumed from the run's own checkpoints."""

    def _start(self, config: Mapping[str, Any]) -> None:
        self._run, self._nodes = None, None
        try:
            spec = TrialSpec.from_dict(_with_local_variables(json.loads(config["order"])))
        except CheckError as error:  # such as a secret that this machine lacks
            self._refusal = f"on {socket.gethostname()}: {error}"
            return
        self._reported_epoch = spec.reported
        self._nodes = PlacementGroupNodes(os.environ) if spec.launch.nodes > 1 else None
        machines = TrialMachines.local(spec, os.environ)
        if self._nodes is not None:
            machines = TrialMachines(self._nodes.site(spec.cores), self._nodes.start_agent)
        self._run = TrialRun(spec, machines)


def _with_local_variables(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**spec, "environment": {**_local_environment(spec["environment"]), **_secrets(spec)}}


def _local_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with the machine-specific variables of this machine."""
    own = select_machine_variables(os.environ)
    return {**{name: value for name, value in environment.items() if name not in MACHINE_VARIABLES}, **own}


def _secrets(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the secrets for workers, which no file may contain: Ray's processes have inherited them."""
    names = (name for name, value in spec["launch"]["extra_env"].items() if value is None)
    return {name: os.environ[name] for name in names if name in os.environ}
