"""The crash record of a sweep's driver, in the format and place of a worker's crash record."""

import os
import socket
import time
import traceback

from fmfsd.errors import FmfsdError
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json


def write_driver_crash(run: RunDir, attempt: int, error: Exception) -> None:
    """Write the crash record of the driver. Raise OSError if that fails."""
    expected = isinstance(error, FmfsdError)
    content = {
        "rank": 0,
        "node": 0,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "step": None,
        "type": type(error).__name__,
        "message": str(error),
        "expected": expected,
        "resumable": True,
        "worth_another_attempt": not expected or getattr(error, "worth_another_attempt", False),
        "traceback": "".join(traceback.format_exception(error)),
    }
    write_json(run.crash_report(attempt, 0), content)
