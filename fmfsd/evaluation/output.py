"""Output of an evaluation: printed first and then written, so that a failed write loses no results."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console

from fmfsd.errors import CheckError, Problem
from fmfsd.evaluation.eval_artifacts import write_evaluation
from fmfsd.evaluation.results import RunEvaluation
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import SHARED_MODE, write_json
from fmfsd.terminal import BrokenPipeSafeStream


def show_and_write(result: RunEvaluation, *, run: RunDir | None, out: Path | None, as_json: bool) -> None:
    """Print tables, or with `as_json` JSON; then store the results in `run`, for its report, and in the file `out`.

    Raises CheckError if `out` can't be written; that `run` can't be is a warning.
    """
    stream = cast(TextIO, BrokenPipeSafeStream(sys.stdout))
    if as_json:
        print(json.dumps(result.to_dict(), indent=2), file=stream)
    else:
        Console(file=stream).print(*result.tables())
    stream.flush()
    stored = _store(result, run) if run is not None else ()
    for warning in (*_not_finite(result), *stored):
        print(f"warning: {warning}", file=sys.stderr)
    if out is not None:
        _write(result, out)


def _not_finite(result: RunEvaluation) -> Iterator[str]:
    if names := result.evaluation.non_finite_values:
        yield f"{', '.join(names)}: NaN or infinite on {result.split}; train with a lower optim.lr"


def _store(result: RunEvaluation, run: RunDir) -> Iterator[str]:
    """Write `evaluation/<split>.json` and `<split>-exits.json`; yield the reason if that fails."""
    try:
        write_evaluation(run, result.split, result.step, result.evaluation, result.classes)
        if result.early_exits is not None:
            write_json(run.early_exits(result.split), {"step": result.step, **asdict(result.early_exits)})
    except OSError as error:
        yield f"{run.path}: the results can't be stored there: {error}; --out FILE writes them elsewhere"


def _write(result: RunEvaluation, out: Path) -> None:
    try:
        write_json(out, result.to_dict(), mode=SHARED_MODE)
    except OSError as error:
        raise CheckError([Problem(f"--out {out}", f"can't be written: {error}")]) from error
