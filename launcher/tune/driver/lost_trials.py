"""Trials whose Ray process is lost: Ray's reason, and a fix for Ray 2.60 with which Tune survives memory kills."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial as RayTrial

_LOW_ON_MEMORY = "low on memory"
_GENERIC_PART = " Some common causes"
"""Starts the part of Ray's message that is the same for every lost process."""


def read_loss_reason(trial: RayTrial) -> str:
    """Return Ray's reason why the trial's last process was lost, in one line; empty if Ray has left none."""
    with suppress(OSError, TypeError):  # Tune gives no path for a trial without an error
        return extract_reason(Path(trial.error_file).read_text(errors="replace"))
    return ""


def extract_reason(text: str) -> str:
    """Return the line of Ray's `text` with the reason why a process was lost."""
    lines = [line for line in text.splitlines() if line.strip()]
    memory = [line for line in lines if _LOW_ON_MEMORY in line]
    return (memory or lines or [""])[-1].partition(_GENERIC_PART)[0].strip()


class _ActorManager(RayActorManager):
    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        """Treat an actor that the memory monitor has killed as any other dead actor."""
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


@contextmanager
def survive_memory_kills() -> Iterator[None]:
    """Run Tune with an actor manager for which a memory kill ends only the trial, and not Tune's loop."""
    original = tune_controller.RayActorManager
    tune_controller.RayActorManager = _ActorManager
    try:
        yield
    finally:
        tune_controller.RayActorManager = original
