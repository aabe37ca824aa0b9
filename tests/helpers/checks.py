"""Results of the checks before a launch."""

from pathlib import Path
from typing import Any

import pytest

from fmfsd.config import RunConfig
from fmfsd.errors import ProblemsError
from fmfsd.run.run_dir import RunDir
from launcher.agent.resources import Resources
from launcher.check.launch_checks import require_sound
from launcher.config.launch_config import LaunchConfig
from launcher.resources.site import Site

CPU = Site(Resources(cores=2))
ONE = LaunchConfig()


def problems(
    config: RunConfig, launch: LaunchConfig = ONE, site: Site = CPU, run: RunDir | None = None, **options: Any
) -> tuple[int, str]:
    """Run the checks, which must fail; return the exit code and the text of the error."""
    with pytest.raises(ProblemsError) as caught:
        require_sound(config, launch, site, run or RunDir(Path("/tmp/nowhere/run")), **options)
    return caught.value.exit_code, str(caught.value)


def sound(config: RunConfig, launch: LaunchConfig = ONE, run: RunDir | None = None, **options: Any) -> None:
    require_sound(config, launch, CPU, run or RunDir(Path("/tmp/nowhere/run")), **options)
