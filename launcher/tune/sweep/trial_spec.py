"""What a trial is told: all that its run is made from, as one value that travels as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.run.run_dir import RunDir
from launcher.config.launch_config import LaunchConfig, from_json, to_json
from launcher.run_dir.sweep_dir import SweepDir


@dataclass(frozen=True)
class TrialOrder:
    """Carry out the sweep's config with `overrides` in the trial's own folder, from wherever it is.

    `launch` has nodes, workers, device and the rest, but neither where nor the folder. `environment` is what may reach
    the workers, and each secret that `launch` has by its name alone. A node may use `cores`. The sweep knows of the
    first `reported` epochs already. With `wants_costs` the trial tells what its network costs too.
    """

    sweep: Path
    name: str
    overrides: tuple[str, ...]
    launch: LaunchConfig
    cwd: str
    environment: Mapping[str, str]
    cores: int = 1
    reported: int = 0
    wants_costs: bool = False

    @property
    def sweep_dir(self) -> SweepDir:
        return SweepDir(self.sweep)

    @property
    def run(self) -> RunDir:
        return self.sweep_dir.trial(self.name)

    def to_json(self) -> dict[str, Any]:
        """Of JSON types."""
        lists = {"overrides": list(self.overrides), "environment": dict(self.environment)}
        return {**vars(self), **lists, "sweep": str(self.sweep), "launch": to_json(self.launch)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrialOrder":
        """What `to_json` has made; further keys are passed over. CheckError for a secret that is not there."""
        told = {name: content[name] for name in cls.__dataclass_fields__}
        launch = from_json(content["launch"], content["environment"])
        own = {"sweep": Path(told["sweep"]), "overrides": tuple(told["overrides"]), "launch": launch}
        return cls(**{**told, **own})
