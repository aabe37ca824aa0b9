"""Rank and world size of this worker, read from the environment of torchrun, DeepSpeed or srun."""

from collections.abc import Mapping
from dataclasses import dataclass

from fmfsd.errors import ConfigError, Problem

_TORCHRUN = {
    "rank": "RANK",
    "size": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_size": "LOCAL_WORLD_SIZE",
    "node": "GROUP_RANK",
}
_DEEPSPEED = {**_TORCHRUN, "local_size": "LOCAL_SIZE", "node": "CROSS_RANK"}
_SRUN = {
    "rank": "SLURM_PROCID",
    "size": "SLURM_NTASKS",
    "local_rank": "SLURM_LOCALID",
    "local_size": "SLURM_NTASKS_PER_NODE",
    "node": "SLURM_NODEID",
}
_OPTIONAL = ("local_rank", "local_size", "node")
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""First id of the steps that srun did not start: batch scripts, interactive shells of salloc, ssh logins."""


@dataclass(frozen=True)
class World:
    """A worker's position: `rank` of `size`, `local_rank` of `local_size` on its `node`; fields that are not set are 0.

    `init_method` is the rendezvous of all workers, as for torch.distributed.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    init_method: str = "env://"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} of {self.size} workers does not exist: ranks start at 0")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "World":
        """Return the world set by torchrun, DeepSpeed or the user (`RANK`, ...) or an srun step (`SLURM_PROCID`, ...).

        Without these variables the world has one worker. The shell of a batch job or of salloc has one worker too: its
        SLURM_PROCID does not belong to a step that srun started.
        The rendezvous is `FMFSD_INIT_METHOD`, or MASTER_ADDR. Raises ConfigError if several workers have neither (for
        example because of variables left over from another program), if the variables contradict each other, or if
        they are not numbers.
        """
        by_deepspeed = "CROSS_RANK" in environment and "GROUP_RANK" not in environment
        candidates = [_DEEPSPEED if by_deepspeed else _TORCHRUN, *([_SRUN] if _is_in_srun_step(environment) else [])]
        variables = next((variables for variables in candidates if variables["rank"] in environment), None)
        if variables is None:
            return cls()
        world = cls(
            **{field: _read_number(environment, name, field in _OPTIONAL) for field, name in variables.items()},
            init_method=environment.get("FMFSD_INIT_METHOD", "env://"),
        )
        if world.size > 1 and world.init_method == "env://" and not environment.get("MASTER_ADDR"):
            raise ConfigError([_missing_address(environment, variables["rank"], variables["size"])])
        return world


def _is_in_srun_step(environment: Mapping[str, str]) -> bool:
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def _missing_address(environment: Mapping[str, str], rank: str, size: str) -> Problem:
    found = f"{rank}={environment[rank]}, {size}={environment[size]}"
    remedy = (
        f"unset {rank} and {size} for a single process, start workers with fmfsd-launch (--on local on this machine), "
        "or set MASTER_ADDR"
    )
    return Problem(found, f"several workers, but MASTER_ADDR (the rendezvous address) is not set: {remedy}")


def _read_number(environment: Mapping[str, str], name: str, optional: bool) -> int:
    text = environment.get(name, "0" if optional else "")
    if not text.isdecimal():
        raise ConfigError(f"environment variable {name}: expected a whole number, found {text!r}")
    return int(text)
