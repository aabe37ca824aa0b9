"""Which of how many workers this process is, read from whatever started it."""

from collections.abc import Mapping
from dataclasses import dataclass

from fmfsd.errors import ConfigError

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

        Without any of these it is a world of one; so it is in a batch job's shell, whose SLURM_PROCID is of no step.
        `FMFSD_INIT_METHOD` says where the workers meet. Raises ConfigError if the variables contradict one another or
        are no numbers.
        """
        by_deepspeed = "CROSS_RANK" in environment and "GROUP_RANK" not in environment
        in_step = environment.get("SLURM_STEP_ID", "").isdecimal()
        told = [_DEEPSPEED if by_deepspeed else _TORCHRUN, *([_SRUN] if in_step else [])]
        names = next((names for names in told if names["rank"] in environment), None)
        if names is None:
            return cls()
        init_method = environment.get("FMFSD_INIT_METHOD", "env://")
        return cls(
            **{field: _number(environment, name, field in _OPTIONAL) for field, name in names.items()},
            init_method=init_method,
        )


def _number(environment: Mapping[str, str], name: str, optional: bool) -> int:
    text = environment.get(name, "0" if optional else "")
    if not text.isdecimal():
        raise ConfigError(f"environment variable {name}: expected a whole number, found {text!r}")
    return int(text)
