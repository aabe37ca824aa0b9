"""Error collector: reports all problems of a command line at once, instead of only the first."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from fmfsd.errors import CheckError, ConfigError, Problem

T = TypeVar("T")
U = TypeVar("U")


class ErrorCollector:
    """Collects the problems of values that are created one after the other."""

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        self.problems = list(problems)

    def collect(self, make: Callable[[], T], default: U) -> T | U:
        """Return the result of `make()`. If it raises ConfigError, store its problems and return `default`."""
        try:
            return make()
        except ConfigError as error:
            self.problems += error.problems
            return default


def collect_all(functions: Iterable[Callable[[], T]], *, other_problems: Sequence[Problem] = ()) -> list[T]:
    """Call every function and return the results.

    If `other_problems` contains problems or a call fails, raise one error with all problems, each once: ConfigError, or
    CheckError if all failures are CheckErrors.
    """
    results, config_problems, check_problems = list[T](), list(other_problems), list[Problem]()
    for make in functions:
        try:
            results.append(make())
        except ConfigError as error:
            config_problems += error.problems
        except CheckError as error:
            check_problems += error.problems
    if config_problems:
        raise ConfigError(list(dict.fromkeys([*config_problems, *check_problems])))
    if check_problems:
        raise CheckError(list(dict.fromkeys(check_problems)))
    return results
