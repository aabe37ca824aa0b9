"""Options of a launch as values: where it runs, on how many nodes and workers, and how."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fmfsd.errors import CheckError, ConfigError, Problem
from launcher.config.environment import mask_secret

CPUS_PER_WORKER = 2
DEFAULT_GRACE_S = 30.0
DEFAULT_HANG_TIMEOUT_S = 300.0
DEFAULT_MAX_RESTARTS = 3
DEEPSPEED_KILL_DELAY_S = 30.0
"""Seconds from SIGTERM to SIGKILL in DeepSpeed's launcher (deepspeed/launcher/launch.py, terminate_process_tree)."""


Device = Literal["auto", "cuda", "cpu"]
Starter = Literal["torchrun", "deepspeed", "direct"]


@dataclass(frozen=True)
class Host:
    """A machine that is reached by ssh, by a name that OpenSSH's config may define. `slots`: its number of workers, if
    given."""

    name: str
    slots: int | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class SlurmOptions:
    """Options of a Slurm batch job, in addition to its nodes and workers. None: the cluster's default.

    `array`: seeds in Slurm's array syntax, such as 0-4 or 1,5; one run per seed. `extra`: further sbatch options by
    name. `srun`: further srun options, for the step of each agent.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    mem: str | None = None
    cpus_per_gpu: int | None = None
    array: str | None = None
    extra: tuple[tuple[str, str], ...] = ()
    srun: tuple[tuple[str, str], ...] = ()
    wait: bool = False


@dataclass(frozen=True)
class LaunchConfig:
    """One launch. `gpus`: workers per node; None: one per visible GPU, or one worker without GPUs.

    `min_nodes`: an elastic launch continues after the loss of nodes as long as this many are left; None: it does not.
    `on` and `hosts` select where it runs. `interface`: network interface between the nodes; None: the one that leads to
    the first node. `preflight`: workers test their node and the network before training; None: only with several nodes.
    `wrap`: command in front of the agent on every node, such as a container. `starter`: what starts the workers of a
    node: torchrun, DeepSpeed's single-node launcher, or the agent itself (direct).
    """

    nodes: int = 1
    gpus: int | None = None
    device: Device = "auto"
    run_dir: Path | None = None
    resume: Literal["auto", "never"] = "auto"
    grace_s: float = DEFAULT_GRACE_S
    hang_timeout_s: float = DEFAULT_HANG_TIMEOUT_S
    max_restarts: int = DEFAULT_MAX_RESTARTS
    min_nodes: int | None = None
    on: Literal["auto", "local", "ssh", "slurm"] = "auto"
    hosts: tuple[Host, ...] = ()
    interface: str | None = None
    preflight: bool | None = None
    starter: Starter = "torchrun"
    wrap: tuple[str, ...] = ()
    extra_env: dict[str, str] = field(default_factory=dict)
    slurm: SlurmOptions = SlurmOptions()

    @property
    def runs_preflight(self) -> bool:
        """Return whether workers test their node and the network before training."""
        return self.nodes > 1 if self.preflight is None else self.preflight

    @property
    def max_grace_s(self) -> float:
        """Return the longest time in seconds that the starter gives workers to stop."""
        return DEEPSPEED_KILL_DELAY_S if self.starter == "deepspeed" else math.inf


@dataclass(frozen=True)
class TuneOptions:
    """Options of one sweep over a search space.

    `metrics`: names such as valid/deepest_top1, each with a mode; several metrics search the Pareto front.
    `concurrent`: trials at the same time; None: as many as fit. `max_failures`: failures allowed per trial. `best`: the
    number of best trials that are repeated at the end with `seeds` seeds each; 0 seeds: none. `disk_bytes`: limit for
    the whole sweep; None: no limit. `seed`: of the sampler. `ray_address`: an existing cluster; None: start Ray for
    this sweep only.
    """

    trials: int
    metrics: tuple[str, ...] = ("valid/deepest_top1",)
    modes: tuple[Literal["max", "min"], ...] = ("max",)
    search: str = "tpe"
    scheduler: Literal["none", "asha", "median"] = "none"
    concurrent: int | None = None
    max_failures: int = 3
    seeds: int = 0
    best: int = 3
    disk_bytes: int | None = None
    seed: int = 0
    ray_address: str | None = None
    dashboard: bool = False


def launch_to_dict(launch: LaunchConfig) -> dict[str, Any]:
    """Return the launch as a dict to store in a run.

    Contains only the names of secret variables. Omits `run_dir`, in which it is stored, `resume`, and the array's
    seeds, because a run has only one of them.
    """
    content = asdict(replace(launch, slurm=replace(launch.slurm, array=None)))
    del content["run_dir"], content["resume"]
    extra = {name: value if mask_secret(name, value) == value else None for name, value in launch.extra_env.items()}
    return {**content, "extra_env": extra}


def launch_from_dict(content: Mapping[str, Any], environment: Mapping[str, str]) -> LaunchConfig:
    """Return the launch that `launch_to_dict` stored, with secrets from `environment`.

    CheckError names the secrets that are not set there; ValueError if `content` has another form.
    """
    from pydantic import TypeAdapter

    extra = dict(content["extra_env"]) if isinstance(content.get("extra_env"), dict) else {}
    secrets = [name for name, value in extra.items() if value is None]
    if missing := [name for name in secrets if name not in environment]:
        raise CheckError(
            [Problem(name, "not set here, and its value is not stored with the run: set it") for name in missing]
        )
    secret_values = {name: environment[name] for name in secrets}
    if content.get("starter") == _DIRECT_IN_0_1:
        content = {**content, "starter": "direct"}
    return TypeAdapter(LaunchConfig).validate_python({**content, "extra_env": {**extra, **secret_values}})


_DIRECT_IN_0_1 = "none"
"""Name of the starter `direct` in runs of release 0.1."""


def parse_node_limits(nodes: int | None, elastic: str | None) -> tuple[int | None, int | None]:
    """Return the initial and the minimum number of nodes from `--nodes N` and `--elastic MIN:MAX`. ConfigError."""
    if elastic is None:
        return nodes, None
    match = re.fullmatch(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})", elastic)
    if match is None or int(match[1]) > int(match[2]):
        raise ConfigError(f"--elastic {elastic!a}: expected MIN:MAX, as in 1:4, with 1 <= MIN <= MAX")
    min_nodes, max_nodes = int(match[1]), int(match[2])
    if nodes is not None and nodes != max_nodes:
        raise ConfigError(f"--nodes {nodes}, --elastic {elastic}: a run starts with MAX nodes: leave --nodes out")
    return max_nodes, min_nodes
