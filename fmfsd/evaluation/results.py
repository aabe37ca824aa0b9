"""What an assessment found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fmfsd.evaluation.accumulator import Evaluation
from fmfsd.evaluation.early_exits import ExitTable, MeasuredCost
from fmfsd.evaluation.exit_thresholds import CurvePoint

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class EarlyExits:
    """`table` is measured; `curve`, of one threshold for all early heads, follows from its costs. `target` is what was
    asked for and `chosen` the thresholds that the validation split gave for it."""

    table: ExitTable
    curve: tuple[CurvePoint, ...]
    target: str | None = None
    chosen: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Assessment:
    """Of `checkpoint`, taken after `step` steps; `metrics` by the names of a run's records, `mirrored` the same of each
    image and its mirror image together, where asked for. `early_exits` is None where no head is early or nobody asked.

    `evaluation` and the names of the `classes` are for the run's report, and stand in no output.
    """

    split: str
    data: str
    checkpoint: str
    step: int
    samples: int
    metrics: dict[str, float]
    mirrored: dict[str, float] | None
    early_exits: EarlyExits | None
    evaluation: Evaluation
    classes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("evaluation", "classes")}

    def tables(self) -> Iterator[Table]:
        """For people."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        title = f"step {self.step}, {self.split}, {self.samples} samples"
        also = ("with its mirror image",) if self.mirrored is not None else ()
        heads = Table("what", "value", *also, title=title, title_justify="left", box=SIMPLE_HEAD)
        for name, value in self.metrics.items():
            beside = (f"{self.mirrored[name]:.4f}",) if self.mirrored is not None else ()
            heads.add_row(name, f"{value:.4f}", *beside)
        yield heads
        if self.early_exits is not None:
            yield _table_of_exits(self.early_exits)


def _table_of_exits(found: EarlyExits) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    exits = found.table
    heads, alone = list(exits.if_all_leave), exits.deepest_alone
    title = "early exits, and costs beside the deepest head alone"
    columns = ("sure from", "top-1", *heads, "M MACs", "ratio", "ms", "ratio")
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))

    def add(name: str, top1: str, leaving: Mapping[str, float], cost: MeasuredCost) -> None:
        shares = (f"{leaving.get(head, 0):.1%}" for head in heads)
        macs = (f"{cost.macs / 1e6:.1f}", f"{cost.macs / alone.macs:.3f}")
        table.add_row(name, top1, *shares, *macs, f"{cost.seconds * 1e3:.3f}", f"{cost.seconds / alone.seconds:.3f}")

    for setting in exits.settings:
        for_target = f" for {found.target}" if setting.thresholds == found.chosen else ""
        name = ", ".join(f"{threshold:.4g}" for threshold in setting.thresholds)
        add(f"{name}{for_target}", f"{setting.top1:.4f}", setting.leaving, setting.cost)
    for name, cost in exits.if_all_leave.items():
        add("", "", {name: 1.0}, cost)
    add("alone", "", {heads[-1]: 1.0}, alone)
    return table
