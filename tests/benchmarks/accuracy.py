"""Accuracy benchmark: last-epoch accuracy of each method (deepest head, ensemble, each branch) over several seeds.

python -m tests.benchmarks.accuracy --root DIR [--methods plain,label_smoothing,deep_supervision,byot,fmfsd,fmfsd_side]
    [--backbone resnet18] [--dataset cifar100] [--seeds 3] [--epochs N] [--set A.B=C] [--packed N|auto]
    [--budget-s S] [--out DIR] [--only-table]

Reduced, for a CPU: `--backbone resnet8` (6 epochs; about 10 minutes a run on 2 cores). Each run is an ordinary
`fmfsd-launch` in its own folder below --out. The same command resumes an interrupted benchmark; finished runs are not
repeated. Exit codes: 0 all runs finished, 1 some failed, 75 some are still to be run.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from fmfsd.config.methods import METHODS
from fmfsd.errors import FmfsdError
from launcher.agent.available_resources import Resources
from tests.benchmarks.accuracy_runs import STOPPED, Bench, Comparison, concurrent_runs
from tests.benchmarks.accuracy_table import print_results
from tests.benchmarks.table import machine

ALL = "plain,label_smoothing,deep_supervision,byot,fmfsd,fmfsd_side"
NOTES = "accuracy.json"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = _parser().parse_args()
    comparison = Comparison(
        options.backbone,
        options.dataset,
        tuple(options.methods.split(",")),
        options.seeds,
        options.epochs,
        options.root,
        options.out,
        tuple(options.settings),
    )
    notes, failed = comparison.out.absolute() / NOTES, False
    try:
        if not options.only_table:
            failed = _run_all(comparison, notes, options)
        print_results(comparison, notes)
    except FmfsdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # the runs have been stopped with a checkpoint each
        return 130
    unfinished = [run for run in comparison.runs() if not run.is_finished]
    return 1 if failed else STOPPED if unfinished and not options.only_table else 0


def _run_all(comparison: Comparison, notes: Path, options: argparse.Namespace) -> bool:
    """Run what is unfinished and return whether a run failed. Raise ConfigError for an invalid config before any run
    starts."""
    end = time.monotonic() + options.budget_s
    for run in comparison.runs():
        run.config()
    unfinished = [run for run in comparison.runs() if not run.is_finished]
    packed = (
        (concurrent_runs(unfinished, os.environ) if options.packed == "auto" else int(options.packed))
        if unfinished
        else 1
    )
    comparison.out.mkdir(parents=True, exist_ok=True)
    gpus = Resources.detect(os.environ).gpus
    bench = Bench(unfinished, packed, lambda: time.monotonic() >= end, notes, machine(), gpus)
    bench.run_all()
    return bool(bench.failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of prepared sets")
    parser.add_argument("--methods", type=_methods, default=ALL)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--seeds", type=_positive, default=3)
    parser.add_argument("--epochs", type=_positive, help="default: as in the preset; milestones at 33, 66.5 and 95 %%")
    parser.add_argument("--set", dest="settings", metavar="A.B=C", action="append", default=[])
    parser.add_argument(
        "--packed",
        type=_packed,
        default="auto",
        help="number of concurrent runs; auto: as many as fit into a GPU's memory",
    )
    parser.add_argument(
        "--budget-s", type=float, default=float("inf"), help="stop all runs, with checkpoints, after S seconds"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--only-table", action="store_true", help="print the table of the finished runs; start nothing")
    return parser


def _methods(text: str) -> str:
    if unknown := [name for name in text.split(",") if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"no method is called {unknown[0]!r}; there are {', '.join(METHODS)}")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
    return int(text)


def _packed(text: str) -> str:
    return text if text == "auto" else str(_positive(text))


if __name__ == "__main__":
    sys.exit(main())
