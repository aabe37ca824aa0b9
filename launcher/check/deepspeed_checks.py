"""Whether DeepSpeed is there where it is asked for, and can do what it is asked for. It is not imported."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from fmfsd.config import RunConfig
from fmfsd.errors import Problem
from launcher.config.launch_config import DEEPSPEED_KILLS_AFTER_S, LaunchConfig

TESTED = ("0.19",)
"""Releases, without their last number."""


def is_asked_for(launch: LaunchConfig, config: RunConfig) -> bool:
    return "deepspeed" in (launch.starter, config.engine.name)


def missing() -> Iterator[Problem]:
    if _version() is None:
        yield Problem("deepspeed", "not installed in this environment: pip install 'fmfsd[deepspeed]'")


def long_grace(launch: LaunchConfig) -> Iterator[Problem]:
    if launch.grace_s > launch.longest_grace_s:
        kills = f"DeepSpeed's launcher kills workers {DEEPSPEED_KILLS_AFTER_S:g} s after TERM"
        most = f"set --grace {DEEPSPEED_KILLS_AFTER_S:g} or less, or --starter torchrun"
        yield Problem(f"--grace {launch.grace_s:g}, --starter deepspeed", f"{kills}: {most}")


def untested() -> Iterator[str]:
    found = _version()
    if found is not None and ".".join(found.split(".")[:2]) not in TESTED:
        yield f"deepspeed {found} was not tried with fmfsd, which knows {', '.join(TESTED)}: the engine may fail"


def _version() -> str | None:
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None
