"""Everything that is wrong with a command line, instead of the first thing."""

from collections.abc import Callable
from typing import TypeVar

from fmfsd.errors import ConfigError, Problem

T = TypeVar("T")


class Gathered:
    """Problems of parts that are made one after the other."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def of(self, make: Callable[[], T], otherwise: T) -> T:
        """What `make` makes, or `otherwise` if it can't, whose reasons are kept."""
        try:
            return make()
        except ConfigError as error:
            self.problems += error.problems
            return otherwise

    def raise_all(self) -> None:
        """ConfigError, if anything was wrong."""
        if self.problems:
            raise ConfigError(self.problems)
