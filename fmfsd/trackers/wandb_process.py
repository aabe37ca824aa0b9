"""Process that passes records from standard input to W&B; it ends with the worker, and W&B's own process with it."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmfsd.system.parent_death import die_with_parent
from fmfsd.trackers.metric_tags import flatten_record

PROJECT = "fmfsd"
"""Default project, if WANDB_PROJECT is not set."""


def main() -> None:
    """Forward the records on standard input to W&B.

    Ignores stop signals: the worker handles them and closes the input. Skips W&B's exit handlers, which may block.
    """
    die_with_parent(int(sys.argv[1]), has_starter=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        forward_records(json.loads(sys.stdin.readline()), sys.stdin)
    except BaseException as error:
        print(" ".join(str(error).split()), flush=True)
        os._exit(1)
    os._exit(0)


def forward_records(run: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Log record i as row i of the W&B run; rows that an earlier start has already sent are skipped."""
    tempfile.tempdir = str(_create_empty(Path(run["dir"]) / "wandb" / "tmp"))
    import wandb

    settings = wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True)
    project = wandb.setup().settings.project or PROJECT
    with wandb.init(**run, project=project, resume="allow", settings=settings) as wandb_run:
        wandb_run.define_metric("*", step_metric="step")
        first_row = wandb_run.step
        for row, line in enumerate(lines):
            if row >= first_row:
                record = json.loads(line)
                wandb_run.log({"step": record["step"], "epoch": record["epoch"], **flatten_record(record)}, step=row)


def _create_empty(folder: Path) -> Path:
    """Create `folder`, without the files of earlier starts: W&B deletes them only if it exits normally."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
