"""Durations in a config, such as `30 epochs` or `500 steps`, and their conversion to steps."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

MAX_AMOUNT = 1e12
_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(epoch|step)s?")


@dataclass(frozen=True)
class Duration:
    """`amount` epochs or steps. A bare number means epochs."""

    amount: float
    unit: Literal["epoch", "step"]

    def to_steps(self, steps_per_epoch: int) -> int:
        """Return the number of whole steps, at least 1."""
        exact = self.amount * (steps_per_epoch if self.unit == "epoch" else 1)
        return max(1, round(exact))

    def __str__(self) -> str:
        return f"{self.amount:.15g} {self.unit}{'' if self.amount == 1 else 's'}"


def parse_duration(value: Any) -> Duration:
    """Return the Duration for `30`, `"30 epochs"`, `"1 epoch"` or `"500 steps"`. ValueError for anything else."""
    if isinstance(value, Duration):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match = _FORM.fullmatch(f"{value} epochs" if is_number else str(value))
    if match is None or isinstance(value, bool) or not 0 < float(match[1]) <= MAX_AMOUNT:
        raise ValueError("a positive number of epochs or steps, as in 30, '30 epochs' or '500 steps'")
    amount, unit = float(match[1]), match[2]
    if unit == "step" and not amount.is_integer():
        raise ValueError("a whole number of steps")
    return Duration(amount, "epoch" if unit == "epoch" else "step")


DurationField = Annotated[
    Duration,
    PlainValidator(parse_duration),
    PlainSerializer(str),
    WithJsonSchema({"type": ["number", "string"], "examples": [30, "30 epochs", "500 steps"]}),
]
