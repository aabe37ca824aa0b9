"""The options of a launch as they were typed, and the request that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fmfsd.errors import ConfigError
from launcher.config.environment import parse_env_options
from launcher.config.error_collector import ErrorCollector
from launcher.config.launch_config import (
    DEFAULT_GRACE_S,
    DEFAULT_HANG_TIMEOUT_S,
    DEFAULT_MAX_RESTARTS,
    Device,
    LaunchConfig,
    SlurmOptions,
    Starter,
    parse_node_limits,
)
from launcher.launch_request import LaunchRequest, find_problems_without_site
from launcher.resources.resolve_site import resolve_site
from launcher.resources.site import Site
from launcher.slurm.job_options import parse_slurm_options
from launcher.transport.ssh import parse_hosts
from launcher.transport.wrap_command import parse_wrap

_SLURM = ("partition", "account", "qos", "time", "mem", "array")


@dataclass(frozen=True, kw_only=True)
class LaunchArguments:
    """Options that a command does not have keep their defaults."""

    config: str = "smoke"
    overrides: Sequence[str] | None = None
    run_dir: Path | None = None
    resume: Literal["auto", "never"] = "auto"
    on: Literal["auto", "local", "ssh", "slurm"] = "auto"
    nodes: int | None = None
    gpus: int | None = None
    device: Device = "auto"
    hosts: str | None = None
    hostfile: Path | None = None
    interface: str | None = None
    env: Sequence[str] | None = None
    engine: str | None = None
    starter: Starter = "torchrun"
    wrap: str | None = None
    max_restarts: int = DEFAULT_MAX_RESTARTS
    elastic: str | None = None
    grace: float = DEFAULT_GRACE_S
    hang_timeout: float = DEFAULT_HANG_TIMEOUT_S
    check: bool = False
    check_data: bool = False
    dry_run: bool = False
    preflight: bool | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    mem: str | None = None
    cpus_per_gpu: int | None = None
    array: str | None = None
    sbatch_args: Sequence[str] | None = None
    srun_args: Sequence[str] | None = None
    wait: bool = False
    as_json: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any], **fixed: Any) -> "LaunchArguments":
        """Read the fields from a command's local variables; `fixed` are values that its users can't choose."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in names}, **fixed)

    def to_request(self, errors: ErrorCollector, environment: Mapping[str, str], cwd: str) -> LaunchRequest:
        """Return the request. ConfigError with every problem, including those in `errors`."""
        launch, nodes = self._launch(errors, environment)
        resolved = errors.collect(lambda: resolve_site(launch, nodes=nodes, environment=environment), None)
        data_root = environment.get("FMFSD_DATA") or "data"
        if resolved is None or errors.problems:
            others = find_problems_without_site(self.config, self._changes, launch, data_root=data_root, cwd=cwd)
            raise ConfigError([*errors.problems, *others])
        site, placed = resolved
        return LaunchRequest(
            config=self.config,
            overrides=self._changes,
            launch=placed,
            site=site,
            stop_after="check" if self.check else "plan" if self.dry_run else "run",
            as_json=self.as_json,
            data_root=data_root,
            checks_all_data=self.check_data,
        )

    def resolve_site(self, errors: ErrorCollector, environment: Mapping[str, str]) -> Site:
        """Return where a launch would run. ConfigError with every problem of the options."""
        launch, nodes = self._launch(errors, environment)
        resolved = errors.collect(lambda: resolve_site(launch, nodes=nodes, environment=environment), None)
        if resolved is None or errors.problems:
            raise ConfigError(errors.problems)
        return resolved[0]

    @property
    def _changes(self) -> tuple[str, ...]:
        return (*([f"engine.name={self.engine}"] if self.engine else []), *(self.overrides or ()))

    def _launch(self, errors: ErrorCollector, environment: Mapping[str, str]) -> tuple[LaunchConfig, int | None]:
        """Return the launch, and its nodes as typed: None for all that are there."""
        nodes, min_nodes = errors.collect(partial(parse_node_limits, self.nodes, self.elastic), (self.nodes, None))
        launch = LaunchConfig(
            gpus=self.gpus,
            device=self.device,
            run_dir=self.run_dir,
            resume=self.resume,
            grace_s=self.grace,
            hang_timeout_s=self.hang_timeout,
            max_restarts=self.max_restarts,
            min_nodes=min_nodes,
            on=self.on,
            hosts=errors.collect(lambda: parse_hosts(self.hosts, self.hostfile), ()),
            interface=self.interface,
            preflight=self.preflight,
            starter=self.starter,
            wrap=errors.collect(lambda: parse_wrap(self.wrap), ()),
            extra_env=errors.collect(lambda: parse_env_options(self.env or [], environment), {}),
            slurm=errors.collect(self._slurm, SlurmOptions()),
        )
        return launch, nodes

    def _slurm(self) -> SlurmOptions:
        return parse_slurm_options(
            {name: getattr(self, name) for name in _SLURM},
            more=self.sbatch_args or (),
            srun=self.srun_args or (),
            cpus_per_gpu=self.cpus_per_gpu,
            wait=self.wait,
        )
