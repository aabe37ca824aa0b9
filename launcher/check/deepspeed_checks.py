"""Checks that a requested DeepSpeed is installed and supports the request. DeepSpeed is not imported."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from fmfsd.config import RunConfig
from fmfsd.errors import Problem
from launcher.config.launch_config import DEEPSPEED_KILL_DELAY_S, LaunchConfig

TESTED_RELEASES = ("0.19",)
"""Tested releases, without the patch number."""


def is_requested(launch: LaunchConfig, config: RunConfig) -> bool:
    return "deepspeed" in (launch.starter, config.engine.name)


def check_installed() -> Iterator[Problem]:
    if _version() is None:
        yield Problem("deepspeed", "not installed in this environment: pip install 'fmfsd[deepspeed]'")


def check_grace(launch: LaunchConfig) -> Iterator[Problem]:
    if launch.grace_s > launch.max_grace_s:
        reason = f"DeepSpeed's launcher kills workers {DEEPSPEED_KILL_DELAY_S:g} s after TERM"
        remedy = f"set --grace {DEEPSPEED_KILL_DELAY_S:g} or less, or --starter torchrun"
        yield Problem(f"--grace {launch.grace_s:g}, --starter deepspeed", f"{reason}: {remedy}")


def warn_untested() -> Iterator[str]:
    installed = _version()
    if installed is not None and ".".join(installed.split(".")[:2]) not in TESTED_RELEASES:
        tested = ", ".join(TESTED_RELEASES)
        yield f"deepspeed {installed} is untested with fmfsd (tested: {tested}): the engine may fail"


def _version() -> str | None:
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None
