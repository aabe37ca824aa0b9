"""The settings of a sweep, as a ledger fact for each start."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fmfsd.errors import CheckError, ConfigError, Problem
from launcher.agent.available_resources import Resources
from launcher.config.launch_config import Device, LaunchConfig, TuneOptions, launch_from_dict, launch_to_dict
from launcher.tune.records.ledger import read_facts
from launcher.tune.records.trial_resources import TrialResources, fit_trials

_OPTIONS = TypeAdapter(TuneOptions)
CHANGEABLE_OPTIONS = ("trials", "concurrent", "max_failures", "seeds", "best", "disk_bytes", "ray_address", "dashboard")
"""Options that may change on resume: they affect neither the draws nor the ranking of trials."""


@dataclass(frozen=True)
class SweepSettings:
    """Settings by which a sweep draws (`options`) and runs (`launch`) its trials.

    `held_out`: number of training samples held out for validation. `worker_bytes`: minimum memory of a worker; 0 if
    unknown.
    """

    options: TuneOptions
    launch: LaunchConfig
    held_out: int
    worker_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types, for a ledger fact."""
        numbers = {"held_out": self.held_out, "worker_bytes": self.worker_bytes}
        return {"options": asdict(self.options), "launch": launch_to_dict(self.launch), **numbers}

    @classmethod
    def read(cls, ledger: Path, environment: Mapping[str, str]) -> "SweepSettings":
        """Return the settings of the last start. Raise CheckError if the ledger has none, or of another version."""
        starts = [fact for fact in read_facts(ledger) if fact["fact"] == "begun"]
        if not starts:
            raise CheckError([Problem(str(ledger), "has no settings of the sweep: start another sweep")])
        try:
            newest = starts[-1]
            options = _OPTIONS.validate_python(newest["options"])
            launch = launch_from_dict(newest["launch"], environment)
            return cls(options, launch, int(newest["held_out"]), int(newest["worker_bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckError([Problem(str(ledger), f"was written by another version: {error}")]) from error

    def trial_launch(self, device: Device) -> LaunchConfig:
        """Return the launch config of a trial on `device`."""
        return replace(self.launch, device=device, max_restarts=self.options.max_failures)

    def fit_on(self, machines: Sequence[Resources]) -> TrialResources:
        """Fit as many trials as possible on `machines`. Raise CheckError if not even one fits."""
        return fit_trials(machines, self.launch, self.options, worker_bytes=self.worker_bytes)

    def fit_on_remaining(self, machines: Sequence[Resources]) -> TrialResources:
        """Fit trials on the machines that remain, fewer than requested if necessary.

        Raise CheckError if not even one fits.
        """
        requested = self.options.concurrent
        most = replace(self, options=replace(self.options, concurrent=None)).fit_on(machines).concurrent
        return replace(self, options=replace(self.options, concurrent=min(requested or most, most))).fit_on(machines)

    def with_changes(self, changes: Mapping[str, Any]) -> "SweepSettings":
        """Return the settings with the options in `changes` changed. Raise ConfigError for one that may not change."""
        if problems := list(self._changes_not_allowed(changes)):
            raise ConfigError(problems)
        return replace(self, options=replace(self.options, **changes))

    def _changes_not_allowed(self, changes: Mapping[str, Any]) -> Iterator[Problem]:
        for name, value in changes.items():
            before = getattr(self.options, name)
            if name not in CHANGEABLE_OPTIONS and value != before:
                yield Problem(f"--{name}", f"{value}, but this sweep was started with {before}: start another sweep")
