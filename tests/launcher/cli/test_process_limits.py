"""The limit of open files is raised, tested in a separate process."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
from launcher.config.process_limits import raise_open_files
raise_open_files(512)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("soft", "hard", "expected"), [(64, 128, "128"), (64, 1024, "512"), (600, 1024, "600")])
def test_the_soft_limit_is_raised_as_far_as_needed_and_allowed(soft: int, hard: int, expected: str) -> None:
    limits = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    command = ["sh", "-c", limits, "sh", sys.executable, "-c", SCRIPT]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected
