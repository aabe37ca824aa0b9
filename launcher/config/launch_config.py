"""What a launch is asked for: where, on how many, and how."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fmfsd.errors import CheckError, ConfigError, Problem
from launcher.config.environment import shown

CPUS_PER_WORKER = 2
DEFAULT_GRACE_S = 30.0
DEFAULT_HANG_TIMEOUT_S = 300.0
DEFAULT_MAX_RESTARTS = 3
DEEPSPEED_KILLS_AFTER_S = 30.0
"""What DeepSpeed's launcher leaves workers from TERM to KILL (deepspeed/launcher/launch.py, terminate_process_tree)."""


Device = Literal["auto", "cuda", "cpu"]
Starter = Literal["torchrun", "deepspeed", "direct"]


@dataclass(frozen=True)
class Host:
    """A machine to reach by ssh, under the name that OpenSSH's own config may know; `slots` are its workers if told."""

    name: str
    slots: int | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class SlurmOptions:
    """What a batch job is asked of Slurm, beside its nodes and workers. None: as the cluster has it.

    `array`: seeds in Slurm's own form, as 0-4 or 1,5; a run for each. `extra`: further options of sbatch by name,
    `srun`: of srun, for the step of each agent.
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
    """One launch. `gpus` is workers a node; None means all visible GPUs, else one worker.

    With fewer than `nodes` it goes on after some are lost, as long as `min_nodes` are left; None: it does not.
    `on` and `hosts` say where. `interface`: the network interface that nodes talk over, None: the one that leads to the
    first node. `preflight`: workers try their node and the network first, None: with more than one node.
    `wrap`: a command in front of the agent on every node, such as a container.
    `starter`: what starts a node's workers: torchrun, DeepSpeed's launcher of one node, or the agent itself (direct).
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
    def tries_nodes_first(self) -> bool:
        """Whether workers try their node and the network before they train."""
        return self.nodes > 1 if self.preflight is None else self.preflight

    @property
    def longest_grace_s(self) -> float:
        """What its starter can leave workers for a stop."""
        return DEEPSPEED_KILLS_AFTER_S if self.starter == "deepspeed" else math.inf


@dataclass(frozen=True)
class TuneOptions:
    """One search over a space.

    `metrics` as in valid/deepest_top1, each with a mode; several are searched for their Pareto front. `concurrent`
    trials at a time, None: as many as fit. A trial may fail `max_failures` times. Afterwards the `best` so many are run
    again with `seeds` seeds each, 0: not at all. `disk_bytes` bound the whole sweep, None: they are not bound.
    `seed` decides what is drawn. `ray_address`: of a cluster that is there; None: Ray is started for the sweep alone.
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


def to_json(launch: LaunchConfig) -> dict[str, Any]:
    """What to keep of a launch for one run: of secret variables only the names, not the run's folder, which is where it
    is kept, and no array of seeds, of which the run has one."""
    content = asdict(replace(launch, slurm=replace(launch.slurm, array=None)))
    del content["run_dir"], content["resume"]
    extra = {name: value if shown(name, value) == value else None for name, value in launch.extra_env.items()}
    return {**content, "extra_env": extra}


def from_json(content: Mapping[str, Any], environment: Mapping[str, str]) -> LaunchConfig:
    """What `to_json` has made, with secrets from `environment`: CheckError names those that are not set there.

    ValueError if it is something else.
    """
    from pydantic import TypeAdapter

    extra = dict(content["extra_env"]) if isinstance(content.get("extra_env"), dict) else {}
    secrets = [name for name, value in extra.items() if value is None]
    if missing := [name for name in secrets if name not in environment]:
        raise CheckError([Problem(name, "not set here, and its value is kept nowhere: set it") for name in missing])
    given = {name: environment[name] for name in secrets}
    if content.get("starter") == _DIRECT_BEFORE:
        content = {**content, "starter": "direct"}
    return TypeAdapter(LaunchConfig).validate_python({**content, "extra_env": {**extra, **given}})


_DIRECT_BEFORE = "none"
"""What runs of 0.1 call a worker that its agent has started itself."""


def node_limits(nodes: int | None, elastic: str | None) -> tuple[int | None, int | None]:
    """The nodes to begin with, and the fewest to go on with, of `--nodes N` and `--elastic MIN:MAX`. ConfigError."""
    if elastic is None:
        return nodes, None
    match = re.fullmatch(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})", elastic)
    if match is None or int(match[1]) > int(match[2]):
        raise ConfigError(f"--elastic {elastic!a}: expected MIN:MAX, as in 1:4, with 1 <= MIN <= MAX")
    fewest, most = int(match[1]), int(match[2])
    if nodes is not None and nodes != most:
        raise ConfigError(f"--nodes {nodes}, --elastic {elastic}: a run begins with MAX nodes; leave --nodes out")
    return most, fewest
