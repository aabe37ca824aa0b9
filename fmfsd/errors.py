"""Errors for users, shown without a traceback; each class has the exit code of the command that fails with it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A problem: its location (a config key, an option, a file), and a message with the value found and the remedy."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class FmfsdError(Exception):
    """Base of every error that is shown without a traceback."""

    exit_code = 1


class ProblemsError(FmfsdError):
    """An error with a list of `problems`, which are reported together."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = [Problem("", problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ConfigError(ProblemsError):
    """The command line or the config is invalid; nothing was started."""

    exit_code = 2


class CheckError(ProblemsError):
    """A check of the machine, the data or the run directory failed; nothing was started."""

    exit_code = 3


class DataError(CheckError):
    """Data files are missing, damaged, or their content does not match their name."""


class RunFailedError(FmfsdError):
    """A run failed after it had started.

    `resumable`: the same command can resume it; `worth_another_attempt`: a restart without any change may succeed.
    """

    resumable = True
    worth_another_attempt = True


class SearchFailedError(RunFailedError):
    """A search failed, and would fail again without a change."""

    worth_another_attempt = False


class PreflightError(RunFailedError):
    """A worker computes wrong results, and would do so again."""

    worth_another_attempt = False


class NonFiniteLossError(RunFailedError):
    """The loss became NaN or infinite. Further steps would only corrupt the weights, and a restart would fail again."""

    worth_another_attempt = False


class WorkerMismatchError(RunFailedError):
    """Workers of one run have different configs, data or software."""

    worth_another_attempt = False


class WeightsDivergedError(RunFailedError):
    """Workers that must have the same weights have different ones."""


class FencedError(RunFailedError):
    """Another attempt has taken over this run."""

    worth_another_attempt = False


class CheckpointError(RunFailedError):
    """A checkpoint could not be written, or is damaged."""

    worth_another_attempt = False


class UnreadableCheckpointError(CheckpointError):
    """A checkpoint can't be read now by this user or on this machine, but is not known to be damaged."""

    worth_another_attempt = True


class NoCheckpointError(CheckpointError):
    """None of the run's checkpoints can be used."""

    resumable = False
