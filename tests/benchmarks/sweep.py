"""What a search costs beside its trials: against a hand-written one, and over hundreds of trials that do nothing.

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
from tests.benchmarks.sweep_noop import WHO, Seen, looked_at
from tests.benchmarks.sweep_runs import TRIALS, Measured, by_hand, ours
from tests.benchmarks.table import print_table, spread

HELD_OUT = 5200
CONFIG = "cifar100-resnet8"


def peer(rounds: int, steps: int) -> None:
    changes = [f"data.valid={HELD_OUT}", f"train.max_steps={steps}", "train.evaluate_test=false"]
    pairs = list[tuple[Measured, Measured]]()
    with tempfile.TemporaryDirectory() as scratch:
        changes.append(f"data.root={_prepared(Path(scratch), changes)}")
        for number in range(rounds):
            folders = [Path(scratch) / f"{way}-{number}" for way in ("hand", "ours")]
            for folder in folders:
                folder.mkdir()
            pairs.append((by_hand(folders[0], CONFIG, changes), ours(folders[1], CONFIG, changes)))
            print(f"round {number + 1}: {pairs[-1]}", flush=True)
    _show(pairs, steps)


def _prepared(root: Path, changes: Sequence[str]) -> Path:
    data = load_config(CONFIG, changes, data_root=str(root)).data
    source = Path(os.environ["FMFSD_CIFAR_DIR"])
    prepare(data, source=source, fetch=False, report=lambda what, done, total: None)
    return root


def _show(pairs: Sequence[tuple[Measured, Measured]], steps: int) -> None:
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
            "computed by all processes, s",
            *(spread([each.cpu_s for each in way]) for way in (hand, mine)),
            f"{spread(computed, 2)}x",
        ],
        ["command to the first step, s", *(spread([each.first for each in way], 1) for way in (hand, mine)), ""],
        ["a trial's end to the next one's first step, s", *(spread(_overheads(way), 1) for way in (hand, mine)), ""],
        ["idle share of the cores, %", *(spread([100 * each.idle for each in way], 1) for way in (hand, mine)), ""],
    ]
    what = f"{TRIALS} trials of {steps} steps, {CONFIG}, median (range)"
    print_table([what, "Ray Tune by hand", "fmfsd-tune", "ratio by pairs"], rows)


def _overheads(way: Sequence[Measured]) -> list[float]:
    return [value for each in way for value in each.overheads]


def noop(trials: int) -> None:
    """What there is after a tenth of them and at the end, and how long the second and the last tenth have taken."""
    step = trials // 10
    with tempfile.TemporaryDirectory() as scratch:
        data = load_config("smoke", [], data_root=scratch).data
        prepare(data, source=None, fetch=False, report=lambda what, done, total: None)
        seen = list(looked_at(Path(scratch), scratch, trials, (step, 2 * step, 9 * step, trials)))
    first, second, third, last = seen
    rows = [[f"{who}: MiB, open files", _has(first, who), _has(last, who)] for who in WHO]
    rows.append(["seconds a trial", _seconds(first, second), _seconds(third, last)])
    print_table([f"{trials} trials that do nothing", f"after {first.trials}", f"after {last.trials}"], rows)


def _has(seen: Seen, who: str) -> str:
    return f"{seen.memory[who]:.0f}, {seen.files[who]}"


def _seconds(one: Seen, other: Seen) -> str:
    return f"{(other.time - one.time) / (other.trials - one.trials):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["peer", "noop"], default="peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--trials", type=int, default=500)
    asked = parser.parse_args()
    if asked.part == "noop":
        noop(asked.trials)
    else:
        peer(asked.rounds, asked.steps)


if __name__ == "__main__":
    main()
