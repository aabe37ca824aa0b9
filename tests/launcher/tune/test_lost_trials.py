"""Lost trials: Ray's reasons, and Tune's handling of kills by Ray's memory monitor."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

from launcher.tune.driver.lost_trials import extract_reason, survive_memory_kills

MEMORY = """\
Failure # 1 (occurred at 2026-11-30_16-25-03)
1 worker(s) were killed due to the node running low on memory. Memory on the node was 4.33GB used / 23.54GB limit
OOM kill reason: Memory usage 4633219072B exceeded threshold of 252765184B

Consider provisioning more memory on this node.
"""
DIED = """\
Failure # 1 (occurred at 2026-11-30_16-25-44)
The actor died unexpectedly before finishing this task.
\tpid: 6911
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Some common causes include: (1) x
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MEMORY, MEMORY.splitlines()[1]),
        (DIED, "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"),
        (f"{DIED}{MEMORY}", MEMORY.splitlines()[1]),
        ("", ""),
    ],
)
def test_the_reason_of_a_lost_trial_is_one_line(text: str, expected: str) -> None:
    assert extract_reason(text) == expected


def test_a_memory_kill_during_a_step_fails_the_trial_and_not_tune() -> None:
    errors = list[Exception]()
    actor: Any = SimpleNamespace(actor_id="1", _on_error=None)
    step: Any = SimpleNamespace(_tracked_actor=actor, _on_error=lambda _actor, error: errors.append(error))
    with survive_memory_kills():
        manager: Any = object.__new__(tune_controller.RayActorManager)  # its constructor would start Ray
    manager._failed_actor_ids, manager._cleanup_actor = set(), lambda **_: None
    manager._actor_task_failed(step, OutOfMemoryError(MEMORY))
    assert [(type(error), str(error)) for error in errors] == [(RayActorError, MEMORY)]
