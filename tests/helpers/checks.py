"""What the check before a launch says."""

from pathlib import Path
from typing import Any

import pytest

from fmfsd.config import TrainConfig
from fmfsd.errors import ProblemsError
from fmfsd.rundir import RunDir
from launcher.check import require_sound
from launcher.config import LaunchConfig
from launcher.resources import Resources
from launcher.site import Site

CPU = Site(Resources(cores=2))
ONE = LaunchConfig()


def problems(
    config: TrainConfig, launch: LaunchConfig = ONE, site: Site = CPU, run: RunDir | None = None, **known: Any
) -> tuple[int, str]:
    """Exit code and text of what the check says."""
    with pytest.raises(ProblemsError) as caught:
        require_sound(config, launch, site, run or RunDir(Path("/tmp/nowhere/run")), **known)
    return caught.value.exit_code, str(caught.value)


def sound(config: TrainConfig, launch: LaunchConfig = ONE, run: RunDir | None = None, **known: Any) -> None:
    require_sound(config, launch, CPU, run or RunDir(Path("/tmp/nowhere/run")), **known)
