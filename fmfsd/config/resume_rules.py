"""What differs between a run's config and the one that it is asked to go on with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fmfsd.config.schema import RunConfig

MAY_CHANGE = frozenset(
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
"""Keys that decide how long, how often, where from (the images themselves are told by their sum) and who is shown it,
not what becomes of a step. Every other key is the run's own: with another value it would be another run."""
ENGINE = "engine."
"""The engine may change too: a checkpoint is the same whoever made the step."""


@dataclass(frozen=True)
class Change:
    """One key with two values."""

    key: str
    before: Any
    after: Any

    @property
    def is_allowed(self) -> bool:
        return self.key in MAY_CHANGE or self.key.startswith(ENGINE)

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def changes(one: RunConfig, other: RunConfig) -> list[Change]:
    """One for each key in which two configs differ."""
    before, after = (dict(leaves(config.model_dump(mode="json"))) for config in (one, other))
    return [Change(key, before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)]


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
