"""The errors that users can meet. Each knows the exit code of the command that shows it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it stands, and what was asked, found and can be done."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class FmfsdError(Exception):
    """Base of every error that is shown without a traceback."""

    exit_code = 1


class ProblemsError(FmfsdError):
    """Everything that was found wrong, at once; `problems` holds one entry for each."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = [Problem("", problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ConfigError(ProblemsError):
    """The command line or the config is wrong; nothing was started."""

    exit_code = 2


class CheckError(ProblemsError):
    """The machine, the data or the run directory does not fit; nothing was started."""

    exit_code = 3


class DataError(CheckError):
    """Data files are missing, damaged or not what their name says."""


class RunFailedError(FmfsdError):
    """A run that had started came to an end that nobody asked for.

    `resumable`: the same command can go on; `worth_another_attempt`: it may even go well as things are.
    """

    resumable = True
    worth_another_attempt = True


class SearchFailedError(RunFailedError):
    """A search can't go on as things are."""

    worth_another_attempt = False


class PreflightError(RunFailedError):
    """A worker computes what is wrong, and would do so again."""

    worth_another_attempt = False


class NonFiniteLossError(RunFailedError):
    """The loss became NaN or infinite; training on would only spoil the weights, and would come to the same again."""

    worth_another_attempt = False


class UnlikeError(RunFailedError):
    """Workers of one run were started with different things."""

    worth_another_attempt = False


class DivergedError(RunFailedError):
    """Workers that must have the same weights have not."""


class FencedError(RunFailedError):
    """Another attempt has taken this run over."""

    worth_another_attempt = False


class CheckpointError(RunFailedError):
    """A checkpoint could not be written, or is damaged."""

    worth_another_attempt = False


class UnreadableCheckpointError(CheckpointError):
    """A checkpoint can't be read now, as this user or on this machine; nothing says that it is damaged."""

    worth_another_attempt = True


class NoCheckpointError(CheckpointError):
    """There are checkpoints, and none of them can be used."""

    resumable = False
