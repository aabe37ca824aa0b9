"""What a launch is asked for: where, on how many, and how."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DEFAULT_GRACE_S = 30.0


@dataclass(frozen=True)
class LaunchConfig:
    """One launch. `gpus` is workers a node; None means all visible GPUs, else one worker."""

    nodes: int = 1
    gpus: int | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    run_dir: Path | None = None
    resume: Literal["auto", "never"] = "auto"
    grace_s: float = DEFAULT_GRACE_S
    extra_env: dict[str, str] = field(default_factory=dict)
