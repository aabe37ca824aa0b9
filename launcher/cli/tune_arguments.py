"""The options of a search as they were typed, and the request that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launcher.config.byte_sizes import parse_size
from launcher.config.environment import parse_env_options
from launcher.config.launch_config import DEFAULT_GRACE_S, DEFAULT_HANG_TIMEOUT_S, Device, LaunchConfig
from launcher.tune.run_sweep import SweepRequest

_SEARCH = ("trials", "search", "scheduler", "seed", "concurrent", "ray_address", "max_failures", "seeds", "best")


@dataclass(frozen=True, kw_only=True)
class TuneArguments:
    """None is an option that was not given: its value comes from the space, or from the sweep that is resumed."""

    config: str | None = None
    space: str | None = None
    overrides: Sequence[str] | None = None
    sweep_dir: Path | None = None
    resume: Path | None = None
    trials: int | None = None
    metrics: Sequence[str] | None = None
    modes: Sequence[str] | None = None
    search: str | None = None
    scheduler: str | None = None
    seed: int | None = None
    seeds: int | None = None
    best: int | None = None
    nodes: int = 1
    gpus: int = 1
    device: Device = "auto"
    concurrent: int | None = None
    ray_address: str | None = None
    dashboard: bool = False
    env: Sequence[str] | None = None
    max_failures: int | None = None
    disk_budget: str | None = None
    grace: float = DEFAULT_GRACE_S
    hang_timeout: float = DEFAULT_HANG_TIMEOUT_S
    dry_run: bool = False
    as_json: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "TuneArguments":
        """Read the fields from the command's local variables."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in names})

    def to_request(self, environment: Mapping[str, str]) -> SweepRequest:
        """Return the request. ConfigError for a variable or a size that can't be read."""
        return SweepRequest(
            space=self.space,
            config=self.config,
            overrides=tuple(self.overrides or ()),
            cli_options={name: value for name, value in self._search().items() if value is not None},
            launch=self._trial_launch(environment),
            sweep_dir=self.sweep_dir,
            resume=self.resume,
            stop_after="plan" if self.dry_run else "run",
            as_json=self.as_json,
            data_root=environment.get("FMFSD_DATA") or "data",
        )

    def _search(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _SEARCH},
            "metrics": tuple(self.metrics) if self.metrics else None,
            "modes": tuple(self.modes) if self.modes else None,
            "dashboard": self.dashboard or None,
            "disk_bytes": parse_size("--disk-budget", self.disk_budget) if self.disk_budget else None,
        }

    def _trial_launch(self, environment: Mapping[str, str]) -> LaunchConfig:
        return LaunchConfig(
            nodes=self.nodes,
            gpus=self.gpus,
            device=self.device,
            grace_s=self.grace,
            hang_timeout_s=self.hang_timeout,
            extra_env=parse_env_options(self.env or [], environment),
        )
