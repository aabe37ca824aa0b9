"""Result table of the accuracy benchmark: means over seeds, and a paired comparison with the method `plain`."""

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmfsd.report.confidence_intervals import PairedDifference
from fmfsd.system.atomic_files import read_json
from tests.benchmarks.accuracy_runs import Comparison, Run, read_notes
from tests.benchmarks.table import command_line, print_rows

MAIN = ("deepest_top1", "ensemble_top1")
BASELINE = "plain"
NOT_RUN = "not run"
HEADER = ("seeds", "deepest head, %", "ensemble, %", "branches, %", "to plain, points (95 %)", "training", "images/s")
VERSIONS = ("python", "torch", "torchvision", "numpy")


@dataclass(frozen=True)
class RunResult:
    """A finished run: last accuracy of each head, seconds and images of its training steps, and the largest number of
    other runs at the same time (None: unknown)."""

    top1: Mapping[str, float]
    seconds: float
    images: int
    concurrent: int | None

    @classmethod
    def of(cls, run: Run, notes: Mapping[str, Any]) -> "RunResult":
        test = run.outcome()["metrics"]["test"]
        top1 = {name: value for name, value in test.items() if name.endswith("_top1")}
        seconds, images = training_totals(run.folder.metrics, run.config().train.batch)
        return cls(top1, seconds, images, notes.get(run.name, {}).get("beside"))


def training_totals(metrics: Path, batch: int) -> tuple[float, int]:
    """Return seconds and images of the training steps, from the recorded rates: the recorded times include pauses of a
    stopped run."""
    seconds, last = 0.0, 0
    for record in map(json.loads, metrics.read_text().splitlines()):
        if record["split"] == "train":
            seconds += (record["step"] - last) * batch / max(record["images_per_s"], 1e-9)
            last = record["step"]
    return seconds, last * batch


def print_results(comparison: Comparison, notes_file: Path) -> None:
    """Print the table of the finished runs, with the command, hardware and versions."""
    notes, runs = read_notes(notes_file), comparison.runs()
    finished = {run: RunResult.of(run, notes) for run in runs if run.is_finished}
    by_method = {
        method: {run.seed: result for run, result in finished.items() if run.method == method}
        for method in comparison.methods
    }
    plain = by_method.get(BASELINE, {})
    rows = [_row(comparison, method, method_results, plain) for method, method_results in by_method.items()]
    print_rows([f"{comparison.backbone} on {comparison.dataset}, last epoch", *HEADER], rows)
    print(f"\n{' · '.join([f'`{command_line()}`', *_origins(list(finished), notes)])}")


def _row(
    comparison: Comparison, method: str, method_results: Mapping[int, RunResult], plain: Mapping[int, RunResult]
) -> list[str]:
    if not method_results:
        return [method, f"0 of {comparison.seeds}", NOT_RUN, *["-"] * (len(HEADER) - 2)]
    first = next(iter(method_results.values()))
    heads = {name: spread([each.top1[name] for each in method_results.values()]) for name in first.top1}
    branches = [f"{name.removesuffix('_top1')} {value}" for name, value in heads.items() if name not in MAIN]
    return [
        method,
        f"{len(method_results)} of {comparison.seeds}",
        heads[MAIN[0]],
        heads.get(MAIN[1], "-"),
        ", ".join(branches) or "-",
        "-" if method == BASELINE else paired_difference(method_results, plain),
        f"{statistics.mean(each.seconds for each in method_results.values()) / 60:.1f} min",
        format_rate(method_results, plain),
    ]


def spread(shares: Sequence[float]) -> str:
    """Format mean and standard deviation in percent."""
    percent = [100 * share for share in shares]
    if len(percent) == 1:
        return f"{percent[0]:.2f}"
    return f"{statistics.mean(percent):.2f} ± {statistics.stdev(percent):.2f}"


def paired_difference(method_results: Mapping[int, RunResult], plain: Mapping[int, RunResult]) -> str:
    """Compare the deepest heads seed by seed: both runs have the same sampling order and initial trunk weights."""
    both = sorted(method_results.keys() & plain.keys())
    if not both:
        return "-"
    return str(
        PairedDifference.from_pairs(
            *([results[seed].top1[MAIN[0]] for seed in both] for results in (method_results, plain))
        )
    )


def format_rate(method_results: Mapping[int, RunResult], plain: Mapping[int, RunResult]) -> str:
    """Format images/s, with the ratio to plain if every run of both methods is known to have run alone."""
    mine, concurrent = f"{_images_per_s(method_results):,.0f}", [each.concurrent for each in method_results.values()]
    if most := max(count or 0 for count in concurrent):
        return f"{mine} (up to {most + 1} at a time)"
    alone = all(count == 0 for count in (*concurrent, *(each.concurrent for each in plain.values())))
    return f"{mine} ({_images_per_s(method_results) / _images_per_s(plain):.2f}x)" if alone and plain else mine


def _images_per_s(method_results: Mapping[int, RunResult]) -> float:
    return sum(each.images for each in method_results.values()) / sum(each.seconds for each in method_results.values())


def _origins(runs: Sequence[Run], notes: Mapping[str, Any]) -> list[str]:
    """Return the hardware and software versions of the runs, without duplicates."""
    hardware = [notes[run.name]["hardware"] for run in runs if run.name in notes]
    versions = []
    for run in runs:
        with suppress(OSError, ValueError, KeyError, IndexError):
            entry = read_json(run.folder.manifest)["launches"][-1]
            commit = [f"commit {entry['commit'][:7]}"] if entry["commit"] else []
            versions.append(", ".join([*(f"{name} {entry['versions'][name]}" for name in VERSIONS), *commit]))
    return [*dict.fromkeys(hardware), *dict.fromkeys(versions)]
