"""Passes what comes on standard input on to W&B: a process that ends with the worker, and W&B's own process with it."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmfsd.system.parent_death import tie_to_parent
from fmfsd.trackers.base import named_values

PROJECT = "fmfsd"
"""Unless WANDB_PROJECT names another."""


def main() -> None:
    """Signals of a stop are the worker's: it closes the input. W&B's exit handlers may wait: they are left out."""
    tie_to_parent(int(sys.argv[1]), has_starter=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        follow(json.loads(sys.stdin.readline()), sys.stdin)
    except BaseException as error:
        print(" ".join(str(error).split()), flush=True)
        os._exit(1)
    os._exit(0)


def follow(run: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Row i of the W&B run is record i: rows that it has already, from an earlier start, are not sent again."""
    tempfile.tempdir = str(_emptied(Path(run["dir"]) / "wandb" / "tmp"))
    import wandb

    settings = wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True)
    project = wandb.setup().settings.project or PROJECT
    with wandb.init(**run, project=project, resume="allow", settings=settings) as tracked:
        tracked.define_metric("*", step_metric="step")
        begin = tracked.step
        for row, line in enumerate(lines):
            if row >= begin:
                record = json.loads(line)
                tracked.log({"step": record["step"], "epoch": record["epoch"], **named_values(record)}, step=row)


def _emptied(folder: Path) -> Path:
    """W&B removes what it puts there only where it exits by itself."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
