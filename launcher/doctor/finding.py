"""One line of a doctor's report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something of a machine as it was found; `wrong`: what is the matter with it, and what to do; or empty."""

    machine: str
    what: str
    found: str
    wrong: str = ""


def size(number: int | None) -> str:
    """Of bytes, for people."""
    if number is None:
        return "not there"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
