"""Results of the checks before a launch."""

from pathlib import Path
from typing import Any

import pytest

from fmfsd.config import RunConfig
from fmfsd.errors import ProblemsError
from fmfsd.run.run_dir import RunDir
from launcher.agent.available_resources import Resources
from launcher.check.launch_checks import require_valid_launch
from launcher.config.launch_config import LaunchConfig
from launcher.resources.site import Site

CPU_SITE = Site(Resources(cores=2))
DEFAULT_LAUNCH = LaunchConfig()


def run_failing_checks(
    config: RunConfig,
    launch: LaunchConfig = DEFAULT_LAUNCH,
    site: Site = CPU_SITE,
    run: RunDir | None = None,
    **options: Any,
) -> tuple[int, str]:
    """Run the checks, which must fail; return the exit code and the text of the error."""
    with pytest.raises(ProblemsError) as caught:
        require_valid_launch(config, launch, site, run or RunDir(Path("/tmp/nowhere/run")), **options)
    return caught.value.exit_code, str(caught.value)


def assert_no_problems(
    config: RunConfig, launch: LaunchConfig = DEFAULT_LAUNCH, run: RunDir | None = None, **options: Any
) -> None:
    require_valid_launch(config, launch, CPU_SITE, run or RunDir(Path("/tmp/nowhere/run")), **options)
