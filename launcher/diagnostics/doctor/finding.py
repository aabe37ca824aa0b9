"""One row of the report of `fmfsd-launch doctor`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A property of a machine. `wrong`: the problem and its remedy, or empty."""

    machine: str
    what: str
    found: str
    wrong: str = ""
