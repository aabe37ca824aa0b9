"""Which of how many workers this process is, read from whatever started it."""

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
"""Slurm numbers steps that srun did not start from here: batch scripts, interactive shells of salloc, ssh logins."""


@dataclass(frozen=True)
class World:
    """A worker's place: `rank` of `size`, `local_rank` of `local_size` on its `node`; 0 of these if nobody said.

    `init_method` is where they all meet.
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
        """The world that torchrun, DeepSpeed or a person (`RANK`, ...) or a step of srun's (`SLURM_PROCID`, ...) says.

        Without any of these it is a world of one; so it is in the shell of a batch job or of salloc, whose SLURM_PROCID
        is not of a step that srun started.
        `FMFSD_INIT_METHOD` says where the workers meet, else MASTER_ADDR. Raises ConfigError if several workers have
        neither, as with variables that are left from something else, or if the variables contradict one another or are
        no numbers.
        """
        by_deepspeed = "CROSS_RANK" in environment and "GROUP_RANK" not in environment
        told = [_DEEPSPEED if by_deepspeed else _TORCHRUN, *([_SRUN] if _is_in_srun_step(environment) else [])]
        names = next((names for names in told if names["rank"] in environment), None)
        if names is None:
            return cls()
        world = cls(
            **{field: _number(environment, name, field in _OPTIONAL) for field, name in names.items()},
            init_method=environment.get("FMFSD_INIT_METHOD", "env://"),
        )
        if world.size > 1 and world.init_method == "env://" and not environment.get("MASTER_ADDR"):
            raise ConfigError([_no_address(environment, names["rank"], names["size"])])
        return world


def _is_in_srun_step(environment: Mapping[str, str]) -> bool:
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def _no_address(environment: Mapping[str, str], rank: str, size: str) -> Problem:
    found = f"{rank}={environment[rank]}, {size}={environment[size]}"
    remedy = f"unset {rank} and {size} for one process, start workers with fmfsd-launch (--on local: here), or set it"
    return Problem(found, f"name one of several workers, and MASTER_ADDR, where they meet, is not set: {remedy}")


def _number(environment: Mapping[str, str], name: str, optional: bool) -> int:
    text = environment.get(name, "0" if optional else "")
    if not text.isdecimal():
        raise ConfigError(f"environment variable {name}: expected a whole number, found {text!r}")
    return int(text)
