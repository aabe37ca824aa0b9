"""Sweep overhead: fmfsd-tune against a hand-written Ray Tune script, and hundreds of trials without training.

python -m tests.benchmarks.sweep [--part peer|noop] [--rounds N] [--steps N] [--trials N]

`peer` needs the official CIFAR-100 in FMFSD_CIFAR_DIR, and takes about seven minutes a round on two cores.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fmfsd.config import load_config
from fmfsd.data.prepare import prepare
from tests.benchmarks.sweep_noop import PROCESSES, Usage, sample_sweep
from tests.benchmarks.sweep_runs import TRIALS, SweepMeasurement, by_hand, ours
from tests.benchmarks.table import print_table, spread

HELD_OUT = 5200
CONFIG = "cifar100-resnet8"


def peer(rounds: int, steps: int) -> None:
    changes = [f"data.valid={HELD_OUT}", f"train.max_steps={steps}", "train.evaluate_test=false"]
    pairs = list[tuple[SweepMeasurement, SweepMeasurement]]()
    with tempfile.TemporaryDirectory() as scratch:
        changes.append(f"data.root={_prepared(Path(scratch), changes)}")
        for number in range(rounds):
            folders = [Path(scratch) / f"{way}-{number}" for way in ("hand", "ours")]
            for folder in folders:
                folder.mkdir()
            pairs.append((by_hand(folders[0], CONFIG, changes), ours(folders[1], CONFIG, changes)))
            print(f"round {number + 1}: {pairs[-1]}", flush=True)
    _print_comparison(pairs, steps)


def _prepared(root: Path, changes: Sequence[str]) -> Path:
    data = load_config(CONFIG, changes, data_root=str(root)).data
    source = Path(os.environ["FMFSD_CIFAR_DIR"])
    prepare(data, source=source, fetch=False, report=lambda what, done, total: None)
    return root


def _print_comparison(pairs: Sequence[tuple[SweepMeasurement, SweepMeasurement]], steps: int) -> None:
    hand, mine = ([pair[way] for pair in pairs] for way in (0, 1))
    ratios = [own.whole / other.whole for other, own in pairs]
    computed = [own.cpu_s / other.cpu_s for other, own in pairs]
    rows = [
        [
            "command to exit, s",
            *(spread([each.whole for each in way]) for way in (hand, mine)),
            f"{spread(ratios, 2)}x",
        ],
        [
            "CPU time of all processes, s",
            *(spread([each.cpu_s for each in way]) for way in (hand, mine)),
            f"{spread(computed, 2)}x",
        ],
        ["command to the first step, s", *(spread([each.first for each in way], 1) for way in (hand, mine)), ""],
        ["a trial's end to the next one's first step, s", *(spread(_overheads(way), 1) for way in (hand, mine)), ""],
        ["idle share of the cores, %", *(spread([100 * each.idle for each in way], 1) for way in (hand, mine)), ""],
    ]
    what = f"{TRIALS} trials of {steps} steps, {CONFIG}, median (range)"
    print_table([what, "hand-written Ray Tune", "fmfsd-tune", "ratio of pairs"], rows)


def _overheads(way: Sequence[SweepMeasurement]) -> list[float]:
    return [value for each in way for value in each.overheads]


def noop(trials: int) -> None:
    """Print memory and open files after a tenth of the trials and at the end, and the time of the second and last
    tenth."""
    step = trials // 10
    with tempfile.TemporaryDirectory() as scratch:
        data = load_config("smoke", [], data_root=scratch).data
        prepare(data, source=None, fetch=False, report=lambda what, done, total: None)
        usages = list(sample_sweep(Path(scratch), scratch, trials, (step, 2 * step, 9 * step, trials)))
    first, second, third, last = usages
    rows = [
        [f"{process}: MiB, open files", _format_usage(first, process), _format_usage(last, process)]
        for process in PROCESSES
    ]
    rows.append(["seconds per trial", _seconds(first, second), _seconds(third, last)])
    print_table([f"{trials} trials without training", f"after {first.trials}", f"after {last.trials}"], rows)


def _format_usage(usage: Usage, process: str) -> str:
    return f"{usage.memory[process]:.0f}, {usage.files[process]}"


def _seconds(one: Usage, other: Usage) -> str:
    return f"{(other.time - one.time) / (other.trials - one.trials):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["peer", "noop"], default="peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--trials", type=int, default=500)
    options = parser.parse_args()
    if options.part == "noop":
        noop(options.trials)
    else:
        peer(options.rounds, options.steps)


if __name__ == "__main__":
    main()
