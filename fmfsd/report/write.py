"""Writing the report page of a run, of several runs, or of a sweep."""

import json
from collections.abc import Sequence
from pathlib import Path

from fmfsd.errors import CheckError, ConfigError, Problem
from fmfsd.report.page import GENERATOR
from fmfsd.report.read_run import read_run
from fmfsd.report.run_page import render_run_page
from fmfsd.report.sweep_page import render_sweep_page
from fmfsd.system.atomic_files import SHARED_MODE, write_atomic

SWEEP, SPACE = "sweep.json", "space.yaml"


def write_report(folders: Sequence[Path], out: Path | None) -> Path:
    """Write the page to `out`, by default `report.html` in the folder, or in the working directory for several folders.

    Returns the path. Overwrites an earlier page, but no other file. Raises CheckError for a folder without a run or
    sweep and for another file in the way, ConfigError for a sweep together with other folders.
    """
    path = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    text = _text(folders)
    try:
        _require_ours(path)
        write_atomic(path, text, durable=False, mode=SHARED_MODE)
    except OSError as error:
        remedy = "write the page elsewhere with --out FILE"
        raise CheckError([Problem(str(path), f"can't be written: {error}: {remedy}")]) from error
    return path


def _text(folders: Sequence[Path]) -> str:
    sweeps = [folder for folder in folders if (folder / SWEEP).is_file()]
    if sweeps and len(folders) > 1:
        raise ConfigError(
            [
                Problem(
                    str(sweeps[0]),
                    "is a sweep, and a page can't contain a sweep and other folders: give the sweep alone",
                )
            ]
        )
    if sweeps:
        return _sweep_text(sweeps[0])
    return render_run_page([read_run(folder) for folder in folders])


def _sweep_text(sweep: Path) -> str:
    try:
        content = json.loads((sweep / SWEEP).read_bytes())
        return render_sweep_page(content, (sweep / SPACE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckError([Problem(str(sweep), f"its files can't be read: {error}")]) from error


def _require_ours(path: Path) -> None:
    if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:4096]:
        raise CheckError([Problem(str(path), "exists and was not written by fmfsd report: choose another --out")])
