"""Everything that is wrong with a command line, instead of the first thing."""

from collections.abc import Callable
from typing import TypeVar

from fmfsd.errors import ConfigError, Problem

T = TypeVar("T")
U = TypeVar("U")


class Gathered:
    """Problems of parts that are made one after the other."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def of(self, make: Callable[[], T], otherwise: U) -> T | U:
        """What `make` makes, or `otherwise` if it can't, whose reasons are kept."""
        try:
            return make()
        except ConfigError as error:
            self.problems += error.problems
            return otherwise
