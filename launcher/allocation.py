"""The Slurm allocation that this process runs in, as its variables tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.hosts import slurm


@dataclass(frozen=True)
class Allocation:
    """`cores` and `gpus` are a node's; `restarts` counts how often Slurm has started the job again."""

    job_id: str
    nodelist: str
    cores: int
    gpus: int
    restarts: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Allocation | None":
        """None outside of one."""
        if not environment.get("SLURM_JOB_ID") or not environment.get("SLURM_JOB_NODELIST"):
            return None
        return cls(
            job_id=environment["SLURM_JOB_ID"],
            nodelist=environment["SLURM_JOB_NODELIST"],
            cores=_number(environment.get("SLURM_CPUS_PER_TASK"))
            or _cores(environment.get("SLURM_JOB_CPUS_PER_NODE", "")),
            gpus=_number(environment.get("SLURM_GPUS_ON_NODE")),
            restarts=_number(environment.get("SLURM_RESTART_COUNT")),
        )

    def hosts(self) -> tuple[str, ...]:
        """The nodes' names."""
        return slurm.hostnames(self.nodelist)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _cores(text: str) -> int:
    """The fewest of any node, of Slurm's `72(x2),36`."""
    return min(map(int, re.findall(r"(?:^|,)(\d+)", text)), default=1)
