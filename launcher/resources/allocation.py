"""The Slurm allocation that this process runs in, read from its environment variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmfsd.errors import CheckError, Problem
from launcher.transport import slurm_commands


@dataclass(frozen=True)
class Allocation:
    """A Slurm allocation. `cores` and `gpus` are per node; `restarts`: how often Slurm has requeued the job.

    `array_id` and `array_task`: of the job array that the job belongs to. `has_job_wide_gpus`: GPUs were requested for
    the whole job (`--gpus`), not per node. `is_batch`: this process is the batch script, which Slurm may start again.
    `het_size`: the number of components of a heterogeneous job.
    """

    job_id: str
    nodelist: str
    cores: int
    gpus: int
    restarts: int = 0
    array_id: str = ""
    array_task: int | None = None
    has_job_wide_gpus: bool = False
    het_size: int = 0
    is_batch: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Allocation | None":
        """Return the allocation that `environment` describes; None outside of an allocation."""
        nodelist = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_JOB_NODELIST_HET_GROUP_0")
        if not environment.get("SLURM_JOB_ID") or not nodelist:
            return None
        return cls(
            job_id=environment["SLURM_JOB_ID"],
            nodelist=nodelist,
            cores=_cores_per_node(environment.get("SLURM_JOB_CPUS_PER_NODE", "")),
            gpus=_gpus_per_node(environment),
            restarts=_to_int(environment.get("SLURM_RESTART_COUNT")),
            array_id=environment.get("SLURM_ARRAY_JOB_ID", ""),
            array_task=_to_int(task) if (task := environment.get("SLURM_ARRAY_TASK_ID")) else None,
            is_batch=environment.get("FMFSD_BATCH_SCRIPT") == "1",
            het_size=_to_int(environment.get("SLURM_HET_SIZE")),
            has_job_wide_gpus="SLURM_GPUS" in environment and "SLURM_GPUS_PER_NODE" not in environment,
        )

    @property
    def run_name(self) -> str:
        """Return the name of a run that is started by hand in this job: `job5`, or `job5_1` in an array.

        It stays the same when the job is requeued.
        """
        return f"job{self.job_id}" if self.array_task is None else f"job{self.array_id}_{self.array_task}"

    def to_dict(self) -> dict[str, Any]:
        """Return the job's entry for the run's manifest."""
        return {"id": self.job_id, "restart": self.restarts, "array_task": self.array_task}

    def gpus_per_node(self) -> int:
        """Return the smallest number of GPUs per node, from the variables, else from Slurm."""
        return self.gpus or slurm_commands.query_gpus_per_node(self.job_id)

    def list_hosts(self) -> tuple[str, ...]:
        """Return the host names of the nodes. CheckError if a step can't be started on a single node of the job."""
        try:
            names = slurm_commands.expand_nodelist(self.nodelist)
        except CheckError as error:
            raise CheckError(f"SLURM_JOB_ID={self.job_id}: {error}; to use this machine: --on local") from error
        if self.het_size > 1:
            message = (
                "heterogeneous jobs are not supported, because a step runs in one component: request one component"
            )
            raise CheckError([Problem(f"SLURM_HET_SIZE={self.het_size}", message)])
        if len(names) > 1 and self.has_job_wide_gpus:
            # Slurm 22.05 refuses every step of such a job: "Invalid generic resource (gres) specification"
            raise CheckError(
                f"job {self.job_id} has {len(names)} nodes and GPUs requested with --gpus (-G), of which a step on "
                "one node gets none: request them with --gpus-per-node"
            )
        return names


def _to_int(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _gpus_per_node(environment: Mapping[str, str]) -> int:
    """Return the GPUs of a node from the first variable that is set: a shell of salloc does not have all of them."""
    if on_node := _to_int(environment.get("SLURM_GPUS_ON_NODE")):
        return on_node
    if per_node := environment.get("SLURM_GPUS_PER_NODE"):  # 4, a100:4 or a100:2,h100:2
        return sum(_to_int(part.rpartition(":")[2]) for part in per_node.split(","))
    listed = environment.get("SLURM_JOB_GPUS") or environment.get("CUDA_VISIBLE_DEVICES") or ""
    return sum(map(_count_numbers, filter(None, listed.split(","))))


def _count_numbers(entry: str) -> int:
    """Return how many numbers `0-3` or `7` contains; a GPU's UUID counts as one."""
    ends = re.fullmatch(r"([0-9]+)-([0-9]+)", entry)
    return int(ends[2]) - int(ends[1]) + 1 if ends else 1


def _cores_per_node(text: str) -> int:
    """Return the smallest number of cores of a node in Slurm's notation `72(x2),36`."""
    return min(map(int, re.findall(r"(?:^|,)(\d+)", text)), default=1)
