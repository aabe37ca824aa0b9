"""Ends a search on which a Ray cluster has lost too much: Tune would wait for ever."""

import time
from collections.abc import Callable

from fmfsd.errors import CheckError, SearchFailedError

LOOK_S = 10.0
PATIENCE_S = 120.0
"""For lost machines to come back."""


class Patience:
    """`require_room` raises CheckError while no trial fits on the machines that are there."""

    def __init__(self, require_room: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._require_room, self._clock = require_room, clock
        self._look_at, self._fitted_at = 0.0, clock()

    def look(self) -> None:
        """As often as one likes. SearchFailedError once it has lasted too long."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        try:
            self._require_room()
            self._fitted_at = now
        except CheckError as error:
            if now - self._fitted_at > PATIENCE_S:
                lost = f"machines of the Ray cluster were lost, and none came back in {PATIENCE_S:g} s"
                raise SearchFailedError(f"{lost}: {error}") from error
