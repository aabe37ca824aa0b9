"""Everything that is wrong with a command line, instead of the first thing."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from fmfsd.errors import CheckError, ConfigError, Problem

T = TypeVar("T")
U = TypeVar("U")


class Gathered:
    """Problems of parts that are made one after the other."""

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        self.problems = list(problems)

    def of(self, make: Callable[[], T], otherwise: U) -> T | U:
        """What `make` makes, or `otherwise` if it can't, whose reasons are kept."""
        try:
            return make()
        except ConfigError as error:
            self.problems += error.problems
            return otherwise


def all_of(makes: Iterable[Callable[[], T]], *, beside: Sequence[Problem] = ()) -> list[T]:
    """What each of them makes.

    With `beside`, or if any of them can't: ConfigError or, if no more than checks have failed, CheckError with
    everything that is wrong, each thing once.
    """
    made, wrong, missing = list[T](), list(beside), list[Problem]()
    for make in makes:
        try:
            made.append(make())
        except ConfigError as error:
            wrong += error.problems
        except CheckError as error:
            missing += error.problems
    if wrong:
        raise ConfigError(list(dict.fromkeys([*wrong, *missing])))
    if missing:
        raise CheckError(list(dict.fromkeys(missing)))
    return made
