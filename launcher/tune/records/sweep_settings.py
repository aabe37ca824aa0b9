"""What a sweep was begun with, and is gone on with: the first facts of its ledger."""

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
"""What decides how much is searched and where, and not what is drawn next or which trial is better."""


@dataclass(frozen=True)
class Begun:
    """How a sweep's trials are drawn (`options`) and run (`launch`); `held_out` samples were set aside for it.

    `worker_bytes`: what a worker holds at least; 0: not known.
    """

    options: TuneOptions
    launch: LaunchConfig
    held_out: int
    worker_bytes: int = 0

    def told(self) -> dict[str, Any]:
        """As a fact's values."""
        own = {"held_out": self.held_out, "worker_bytes": self.worker_bytes}
        return {"options": asdict(self.options), "launch": to_json(self.launch), **own}

    @classmethod
    def of(cls, ledger: Path, environment: Mapping[str, str]) -> "Begun":
        """As the sweep was last gone on with. CheckError if the ledger does not tell."""
        told = [fact for fact in facts(ledger) if fact["fact"] == "begun"]
        if not told:
            raise CheckError([Problem(str(ledger), "does not say how this sweep was begun: begin another")])
        try:
            options = _OPTIONS.validate_python(told[-1]["options"])
            launch, numbers = (
                from_json(told[-1]["launch"], environment),
                (told[-1]["held_out"], told[-1]["worker_bytes"]),
            )
            return cls(options, launch, *map(int, numbers))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckError([Problem(str(ledger), f"was written by another version: {error}")]) from error

    def launch_of_a_trial(self, device: Device) -> LaunchConfig:
        """On what Ray has given it."""
        return replace(self.launch, device=device, max_restarts=self.options.max_failures)

    def shape_on(self, machines: Sequence[Resources]) -> Shape:
        """CheckError if not even one trial fits."""
        return shape_of(machines, self.launch, self.options, worker_bytes=self.worker_bytes)

    def shape_left_on(self, machines: Sequence[Resources]) -> Shape:
        """The same of what is left once some may be lost: fewer trials at a time than were asked for are better than
        none."""
        asked = self.options.concurrent
        most = replace(self, options=replace(self.options, concurrent=None)).shape_on(machines).concurrent
        return replace(self, options=replace(self.options, concurrent=min(asked or most, most))).shape_on(machines)

    def going_on(self, given: Mapping[str, Any]) -> "Begun":
        """With those options that were `given` anew. ConfigError for one that would make it another search."""
        refused = list(self._refused(given))
        if refused:
            raise ConfigError(refused)
        return replace(self, options=replace(self.options, **given))

    def _refused(self, given: Mapping[str, Any]) -> Iterator[Problem]:
        for name, value in given.items():
            before = getattr(self.options, name)
            if name not in MAY_CHANGE and value != before:
                yield Problem(f"--{name}", f"{value}, and this sweep was begun with {before}: begin another one")
