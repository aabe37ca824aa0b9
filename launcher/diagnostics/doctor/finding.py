"""One line of a doctor's report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something of a machine as it was found; `wrong`: what is the matter with it, and what to do; or empty."""

    machine: str
    what: str
    found: str
    wrong: str = ""
