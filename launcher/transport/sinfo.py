"""Partitions of a Slurm cluster, read from sinfo."""

from dataclasses import dataclass

from fmfsd.errors import CheckError
from launcher.transport.local_commands import run_captured

ANSWER_TIMEOUT_S = 10.0
_FORMAT = "%P|%a|%l|%D|%c|%G"


@dataclass(frozen=True)
class Partition:
    """Nodes of one kind in a partition, as sinfo prints them, e.g. time limit `1-00:00:00` and gres `gpu:a100:4`."""

    name: str
    state: str
    time_limit: str
    nodes: str
    cores: str
    gres: str

    def __str__(self) -> str:
        gres = "" if self.gres == "(null)" else f", {self.gres}"
        return f"{self.name} {self.state}, at most {self.time_limit}: {self.nodes} nodes of {self.cores} cores{gres}"


def list_partitions() -> list[Partition]:
    """Return all partitions that this user may see. CheckError with sinfo's error output if it fails."""
    code, output, errors = run_captured(("sinfo", "--noheader", f"--format={_FORMAT}"), timeout_s=ANSWER_TIMEOUT_S)
    if code != 0:
        raise CheckError((errors.strip().splitlines() or [f"sinfo: exit code {code}"])[-1])
    return [Partition(*line.split("|")) for line in output.splitlines()]


def slurm_version() -> str:
    """Return Slurm's version as sinfo prints it; empty if it is not available."""
    return run_captured(("sinfo", "--version"), timeout_s=ANSWER_TIMEOUT_S)[1].strip()
