"""Capacity watchdog: fails a sweep whose Ray cluster has lost too many machines, for which Tune would wait for ever."""

import time
from collections.abc import Callable

from fmfsd.errors import CheckError, SearchFailedError

CHECK_INTERVAL_S = 10.0
RECOVERY_TIMEOUT_S = 120.0
"""Time for lost machines to come back."""


class CapacityWatchdog:
    """Watches the capacity of a cluster. `require_capacity` raises CheckError while no trial fits on its machines."""

    def __init__(self, require_capacity: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._require_room, self._clock = require_capacity, clock
        self._next_check_at, self._had_room_at = 0.0, clock()

    def check(self) -> None:
        """Check the capacity, at most every CHECK_INTERVAL_S. Raise SearchFailedError if it is missing for too long."""
        now = self._clock()
        if now < self._next_check_at:
            return
        self._next_check_at = now + CHECK_INTERVAL_S
        try:
            self._require_room()
            self._had_room_at = now
        except CheckError as error:
            if now - self._had_room_at > RECOVERY_TIMEOUT_S:
                lost = f"the Ray cluster lost machines, and none came back within {RECOVERY_TIMEOUT_S:g} s"
                raise SearchFailedError(f"{lost}: {error}") from error
