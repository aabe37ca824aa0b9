"""The settings of a sweep, as a ledger fact for each start."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fmfsd.errors import CheckError, ConfigError, Problem
from launcher.agent.resources import Resources
from launcher.config.launch_config import Device, LaunchConfig, TuneOptions, from_json, to_json
from launcher.tune.records.ledger import facts
from launcher.tune.records.trial_resources import Shape, shape_of

_OPTIONS = TypeAdapter(TuneOptions)
MAY_CHANGE = ("trials", "concurrent", "max_failures", "seeds", "best", "disk_bytes", "ray_address", "dashboard")
"""Options that may change on resume: they affect neither the draws nor the ranking of trials."""


@dataclass(frozen=True)
class Begun:
    """How a sweep draws (`options`) and runs (`launch`) its trials.

    `held_out`: number of training samples held out for validation. `worker_bytes`: minimum memory of a worker; 0 if
    unknown.
    """

    options: TuneOptions
    launch: LaunchConfig
    held_out: int
    worker_bytes: int = 0

    def told(self) -> dict[str, Any]:
        """Return the settings as JSON types, for a ledger fact."""
        numbers = {"held_out": self.held_out, "worker_bytes": self.worker_bytes}
        return {"options": asdict(self.options), "launch": to_json(self.launch), **numbers}

    @classmethod
    def of(cls, ledger: Path, environment: Mapping[str, str]) -> "Begun":
        """Return the settings of the last start. Raise CheckError if the ledger has none, or of another version."""
        starts = [fact for fact in facts(ledger) if fact["fact"] == "begun"]
        if not starts:
            raise CheckError([Problem(str(ledger), "has no settings of the sweep: start another sweep")])
        try:
            newest = starts[-1]
            options = _OPTIONS.validate_python(newest["options"])
            launch = from_json(newest["launch"], environment)
            return cls(options, launch, int(newest["held_out"]), int(newest["worker_bytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckError([Problem(str(ledger), f"was written by another version: {error}")]) from error

    def launch_of_a_trial(self, device: Device) -> LaunchConfig:
        """Return the launch config of a trial on `device`."""
        return replace(self.launch, device=device, max_restarts=self.options.max_failures)

    def shape_on(self, machines: Sequence[Resources]) -> Shape:
        """Fit as many trials as possible on `machines`. Raise CheckError if not even one fits."""
        return shape_of(machines, self.launch, self.options, worker_bytes=self.worker_bytes)

    def shape_left_on(self, machines: Sequence[Resources]) -> Shape:
        """Fit trials on the machines that remain, fewer than requested if necessary.

        Raise CheckError if not even one fits.
        """
        requested = self.options.concurrent
        most = replace(self, options=replace(self.options, concurrent=None)).shape_on(machines).concurrent
        return replace(self, options=replace(self.options, concurrent=min(requested or most, most))).shape_on(machines)

    def going_on(self, given: Mapping[str, Any]) -> "Begun":
        """Return the settings with the options in `changes` changed. Raise ConfigError for one that may not change."""
        if problems := list(self._changes_not_allowed(given)):
            raise ConfigError(problems)
        return replace(self, options=replace(self.options, **given))

    def _changes_not_allowed(self, changes: Mapping[str, Any]) -> Iterator[Problem]:
        for name, value in changes.items():
            before = getattr(self.options, name)
            if name not in MAY_CHANGE and value != before:
                yield Problem(f"--{name}", f"{value}, but this sweep was started with {before}: start another sweep")
