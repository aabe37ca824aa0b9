"""Findings about the environment of this machine: prepared data sets, ssh, Slurm."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from fmfsd.data.shards.index import read_index
from fmfsd.errors import CheckError, DataError
from launcher.diagnostics.doctor.finding import Finding
from launcher.resources.allocation import Allocation
from launcher.resources.host_probe import THIS_MACHINE
from launcher.transport import sinfo


def findings(environment: Mapping[str, str], *, cwd: str) -> Iterator[Finding]:
    yield from _data(
        Path(cwd) / (environment.get("FMFSD_DATA") or "data"), is_named=bool(environment.get("FMFSD_DATA"))
    )
    ssh = shutil.which("ssh")
    yield Finding(THIS_MACHINE, "ssh", ssh or "not installed; only --hosts needs it")
    yield from _slurm(Allocation.from_environment(environment))


def _data(root: Path, *, is_named: bool) -> Iterator[Finding]:
    name = "FMFSD_DATA" if is_named else "data"
    indexes = sorted(root.glob("*/index.json")) if root.is_dir() else []
    if not indexes:
        yield Finding(
            THIS_MACHINE, name, f"{root}: no prepared data set; a launch downloads and prepares what it needs"
        )
    for path in indexes:
        try:
            yield Finding(THIS_MACHINE, name, f"{path.parent}: {read_index(path.parent).describe()}")
        except DataError as error:
            yield Finding(THIS_MACHINE, name, f"{path.parent}: damaged", str(error))


def _slurm(allocation: Allocation | None) -> Iterator[Finding]:
    if shutil.which("sinfo") is None:
        yield Finding(THIS_MACHINE, "Slurm", "not installed; only --on slurm needs it")
        return
    try:
        for partition in sinfo.list_partitions():
            yield Finding(THIS_MACHINE, "Slurm partition", str(partition))
        yield Finding(THIS_MACHINE, "Slurm", sinfo.slurm_version())
    except CheckError as error:
        remedy = "jobs need to reach it: ask the administrators of the cluster" if allocation is not None else ""
        yield Finding(THIS_MACHINE, "Slurm", f"installed, but no cluster answers: {error}", remedy)
    if allocation is not None:
        offer = f"{allocation.cores} cores and {allocation.gpus} GPUs per node"
        yield Finding(THIS_MACHINE, "Slurm job", f"inside job {allocation.job_id} on {allocation.nodelist}, {offer}")
