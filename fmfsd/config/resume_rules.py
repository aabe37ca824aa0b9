"""Resume rules: which config values may change when a run is resumed, and the differences between two configs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fmfsd.config.schema import RunConfig

CHANGEABLE_KEYS = frozenset(
    {
        "data.root",
        "data.images_in",
        "train.epochs",
        "train.max_steps",
        "train.evaluate_every",
        "train.evaluate_test",
        "train.log_every",
        "train.recompute",
        "checkpoint.every_epochs",
        "checkpoint.every_steps",
        "checkpoint.every_minutes",
        "checkpoint.keep",
        "tracker",
    }
)
"""Keys that may change on resume: they set length, intervals, data location (a checksum identifies the images) and
trackers, and do not affect the result of a step. A change of any other key requires a new run."""
ENGINE_PREFIX = "engine."
"""Prefix of the engine's keys, which may change too: checkpoints do not depend on the engine."""


@dataclass(frozen=True)
class Change:
    """A key whose value differs between two configs."""

    key: str
    before: Any
    after: Any

    @property
    def is_allowed(self) -> bool:
        return self.key in CHANGEABLE_KEYS or self.key.startswith(ENGINE_PREFIX)

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def find_changes(one: RunConfig, other: RunConfig) -> list[Change]:
    """Return one Change for each key in which two configs differ."""
    before, after = (dict(flatten_keys(config.model_dump(mode="json"))) for config in (one, other))
    return [Change(key, before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)]


def flatten_keys(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
