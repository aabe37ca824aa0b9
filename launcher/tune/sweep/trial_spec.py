"""The specification of a trial: everything that its run needs, as one value that is sent as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.run.run_dir import RunDir
from launcher.config.launch_config import LaunchConfig, launch_from_dict, launch_to_dict
from launcher.run_dir.sweep_dir import SweepDir


@dataclass(frozen=True)
class TrialSpec:
    """A run of the sweep's config with `overrides`, in the trial's own folder, on any machine.

    `launch` has nodes, workers, device and so on, but no hosts and no run folder. `environment`: variables for the
    workers, including the secrets that `launch` names without a value. `cores`: cores of each node. `reported`: number
    of epochs whose metrics the sweep has already. `wants_costs`: also report the cost of the network.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as JSON types."""
        converted = {"overrides": list(self.overrides), "environment": dict(self.environment)}
        return {**vars(self), **converted, "sweep": str(self.sweep), "launch": launch_to_dict(self.launch)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TrialSpec":
        """Parse the result of `to_dict`; ignore further keys. Raise CheckError for a missing secret."""
        fields = {name: content[name] for name in cls.__dataclass_fields__}
        launch = launch_from_dict(content["launch"], content["environment"])
        converted = {"sweep": Path(fields["sweep"]), "overrides": tuple(fields["overrides"]), "launch": launch}
        return cls(**{**fields, **converted})
