"""What is around this machine: prepared data sets, ssh, Slurm."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from fmfsd.data.shards.index import read_index
from fmfsd.errors import CheckError, DataError
from launcher.diagnostics.doctor.finding import Finding
from launcher.resources.allocation import Allocation
from launcher.resources.host_probe import HERE
from launcher.transport import sinfo


def findings(environment: Mapping[str, str], *, cwd: str) -> Iterator[Finding]:
    yield from _data(
        Path(cwd) / (environment.get("FMFSD_DATA") or "data"), is_named=bool(environment.get("FMFSD_DATA"))
    )
    ssh = shutil.which("ssh")
    yield Finding(HERE, "ssh", ssh or "not there; only --hosts needs it")
    yield from _slurm(Allocation.of(environment))


def _data(root: Path, *, is_named: bool) -> Iterator[Finding]:
    what = "FMFSD_DATA" if is_named else "data"
    indexes = sorted(root.glob("*/index.json")) if root.is_dir() else []
    if not indexes:
        yield Finding(HERE, what, f"{root}: no prepared set; a launch fetches and prepares what it needs")
    for path in indexes:
        try:
            yield Finding(HERE, what, f"{path.parent}: {read_index(path.parent).describe()}")
        except DataError as error:
            yield Finding(HERE, what, f"{path.parent}: damaged", str(error))


def _slurm(allocation: Allocation | None) -> Iterator[Finding]:
    if shutil.which("sinfo") is None:
        yield Finding(HERE, "Slurm", "not there; only --on slurm needs it")
        return
    try:
        for partition in sinfo.partitions():
            yield Finding(HERE, "Slurm partition", str(partition))
        yield Finding(HERE, "Slurm", sinfo.version())
    except CheckError as error:
        lost = "a job of its own has to reach it: ask those who run the cluster" if allocation is not None else ""
        yield Finding(HERE, "Slurm", f"installed, and no cluster answers: {error}", lost)
    if allocation is not None:
        each = f"{allocation.cores} cores and {allocation.gpus} GPUs on each"
        yield Finding(HERE, "Slurm job", f"we are in {allocation.job_id} on {allocation.nodelist}, {each}")
