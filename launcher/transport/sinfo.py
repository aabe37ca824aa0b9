"""What a Slurm cluster offers, as sinfo tells."""

from dataclasses import dataclass

from fmfsd.errors import CheckError
from launcher.transport.local_commands import said_here

ANSWER_S = 10.0
_FORMAT = "%P|%a|%l|%D|%c|%G"


@dataclass(frozen=True)
class Partition:
    """Nodes of one kind in a partition, in Slurm's own words, as `1-00:00:00` and `gpu:a100:4`."""

    name: str
    state: str
    time_limit: str
    nodes: str
    cores: str
    gres: str

    def __str__(self) -> str:
        gres = "" if self.gres == "(null)" else f", {self.gres}"
        return f"{self.name} {self.state}, at most {self.time_limit}: {self.nodes} nodes of {self.cores} cores{gres}"


def partitions() -> list[Partition]:
    """All that this user may see. CheckError with sinfo's own words if it does not tell."""
    code, output, errors = said_here(("sinfo", "--noheader", f"--format={_FORMAT}"), deadline_s=ANSWER_S)
    if code != 0:
        raise CheckError((errors.strip().splitlines() or [f"sinfo: exit code {code}"])[-1])
    return [Partition(*line.split("|")) for line in output.splitlines()]


def version() -> str:
    """Empty if it is not told."""
    return said_here(("sinfo", "--version"), deadline_s=ANSWER_S)[1].strip()
