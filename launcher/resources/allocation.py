"""The Slurm allocation that this process runs in, as its variables tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmfsd.errors import CheckError, Problem
from launcher.transport import slurm_commands


@dataclass(frozen=True)
class Allocation:
    """`cores` and `gpus` are a node's; `restarts` counts how often Slurm has started the job again.

    `array_id` and `array_task`: of a job array, where the job is one of its tasks. `spreads_gpus`: GPUs were asked for
    the whole job (`--gpus`), not for each node. `is_batch`: we are the job's own script, which Slurm may start again.
    `het_size`: the number of components of a heterogeneous job.
    """

    job_id: str
    nodelist: str
    cores: int
    gpus: int
    restarts: int = 0
    array_id: str = ""
    array_task: int | None = None
    spreads_gpus: bool = False
    het_size: int = 0
    is_batch: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Allocation | None":
        """None outside of one."""
        nodelist = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_JOB_NODELIST_HET_GROUP_0")
        if not environment.get("SLURM_JOB_ID") or not nodelist:
            return None
        return cls(
            job_id=environment["SLURM_JOB_ID"],
            nodelist=nodelist,
            cores=_cores(environment.get("SLURM_JOB_CPUS_PER_NODE", "")),
            gpus=_gpus(environment),
            restarts=_number(environment.get("SLURM_RESTART_COUNT")),
            array_id=environment.get("SLURM_ARRAY_JOB_ID", ""),
            array_task=_number(task) if (task := environment.get("SLURM_ARRAY_TASK_ID")) else None,
            is_batch=environment.get("FMFSD_BATCH_SCRIPT") == "1",
            het_size=_number(environment.get("SLURM_HET_SIZE")),
            spreads_gpus="SLURM_GPUS" in environment and "SLURM_GPUS_PER_NODE" not in environment,
        )

    @property
    def name(self) -> str:
        """`job5`, and `job5_1` of an array: what a run is called that is started by hand in it, each time again."""
        return f"job{self.job_id}" if self.array_task is None else f"job{self.array_id}_{self.array_task}"

    def told(self) -> dict[str, Any]:
        """For the run's manifest."""
        return {"id": self.job_id, "restart": self.restarts, "array_task": self.array_task}

    def gpus_of_a_node(self) -> int:
        """Return what the variables say, else what Slurm does; the fewest of any node."""
        return self.gpus or slurm_commands.gpus_of_a_node(self.job_id)

    def hosts(self) -> tuple[str, ...]:
        """The nodes' names. CheckError if no step could be started on one of them alone."""
        try:
            names = slurm_commands.hostnames(self.nodelist)
        except CheckError as error:
            raise CheckError(f"SLURM_JOB_ID={self.job_id}: {error}; to use this machine: --on local") from error
        if self.het_size > 1:
            message = "heterogeneous jobs are not supported, as a step has nodes of one component: leave out the others"
            raise CheckError([Problem(f"SLURM_HET_SIZE={self.het_size}", message)])
        if len(names) > 1 and self.spreads_gpus:
            # Slurm 22.05 refuses every step of such a job: "Invalid generic resource (gres) specification"
            raise CheckError(
                f"job {self.job_id} has {len(names)} nodes and asked for GPUs with --gpus (-G), from which no single "
                "node's step gets any: ask with --gpus-per-node"
            )
        return names


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _gpus(environment: Mapping[str, str]) -> int:
    """Return a node's GPUs by the first variable that is set: a shell of salloc does not have all of them."""
    if on_node := _number(environment.get("SLURM_GPUS_ON_NODE")):
        return on_node
    if per_node := environment.get("SLURM_GPUS_PER_NODE"):  # 4, a100:4 or a100:2,h100:2
        return sum(_number(part.rpartition(":")[2]) for part in per_node.split(","))
    listed = environment.get("SLURM_JOB_GPUS") or environment.get("CUDA_VISIBLE_DEVICES") or ""
    return sum(map(_length, filter(None, listed.split(","))))


def _length(part: str) -> int:
    """Return how many numbers `0-3` or `7` stands for; a GPU's UUID counts as one."""
    ends = re.fullmatch(r"([0-9]+)-([0-9]+)", part)
    return int(ends[2]) - int(ends[1]) + 1 if ends else 1


def _cores(text: str) -> int:
    """The fewest of any node, of Slurm's `72(x2),36`."""
    return min(map(int, re.findall(r"(?:^|,)(\d+)", text)), default=1)
