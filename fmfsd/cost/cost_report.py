"""Cost estimate of a config: values and tables. Computing one needs torch and is in fmfsd.cost.measure.estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.table import Table


Device = Literal["cpu", "cuda"]
Shape = tuple[int, int, int]
"""Channels, height and width of a feature map."""


ChannelStatistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of each channel, as fractions of full scale."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of one image's forward pass."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Layer:
    """A layer on a head's path: its display name and the shape of its output map."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class HeadCost:
    """Costs of one head.

    `tap`: the block or stage whose output map (`shape`) the head's branch starts from. `path`: the `layers` as text.
    `own`: the layers that neither the backbone nor another head uses; `training_share`: their fraction of a training
    step's multiply-adds. `alone`: the network pruned to this head (`fmfsd.model.prune`); `of_plain`: its multiply-adds
    divided by those of the plain backbone. `exits_of_plain`: the same ratio for an image that exits at this head, the
    earlier exits included; None for a head that early exits never compute (neither an early head nor the deepest).
    """

    name: str
    tap: str
    shape: Shape
    path: str
    layers: tuple[Layer, ...]
    own: Cost
    training_share: float
    alone: Cost
    of_plain: float
    exits_of_plain: float | None


@dataclass(frozen=True)
class ParameterCount:
    """`backbone` includes the deepest head, `branches` their heads and feature layers, `fusion` everything else."""

    total: int
    backbone: int
    branches: int
    fusion: int


@dataclass(frozen=True)
class MemoryCost:
    """Bytes that one worker holds at the end of a micro-batch's forward pass.

    `buffers`: batch statistics. `optimizer`: momenta and weight averages. `activations`: tensors saved for the backward
    pass. `data`: the shards of all splits in memory, at their published sizes (0 for an image folder). Workspaces of
    kernels, memory of libraries and temporary tensors are not included. `offloaded`: optimizer state that
    engine.offload stores in host memory; not part of `total`.
    """

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    activations: int
    data: int
    total: int
    offloaded: int = 0


@dataclass(frozen=True)
class CostEstimate:
    """Costs of a config: the whole network, its heads, and the memory of one worker.

    `macs`: multiply-adds of one image's forward pass in training, all heads included; the backward pass takes about
    twice as many. `plain`: the backbone with its own classifier. `trunk`: the backbone without a classifier. `shared`:
    other layers that more than one head uses. `fusion`: the value of `model.fusion`. `pretrained_statistics`: the
    channel statistics that the pretrained weights were trained with.
    """

    workers: int
    fusion: str
    heads: tuple[HeadCost, ...]
    parameters: ParameterCount
    macs: int
    plain: Cost
    trunk: Cost
    shared: Cost
    memory: MemoryCost
    device: Device = "cpu"
    pretrained_statistics: ChannelStatistics | None = None

    def network_table(self, plain: bool) -> Table:
        """Return a table with one row per head, at most 120 columns wide. `plain`: without borders, for a file."""
        table = _table(plain, "head", "path and feature maps", *_NUMBERS)
        table.add_row("", "backbone", *self._training_columns(self.trunk))
        if self.shared.parameters or self.shared.macs:
            table.add_row("", "shared by heads", *self._training_columns(self.shared))
        for head in self.heads:
            table.add_row(
                head.name, f"{head.path}\n{_maps(head)}", *self._training_columns(head.own), *self._pruned_columns(head)
            )
        table.add_row("all", "", *self._training_columns(Cost(self.parameters.total, self.macs)))
        return table

    def _training_columns(self, cost: Cost) -> tuple[str, str, str]:
        return f"{cost.parameters / 1e6:.3f} M", f"{cost.macs / 1e6:.2f} M", f"{cost.macs / self.macs:.1%}"

    def _pruned_columns(self, head: HeadCost) -> tuple[str, str]:
        parameters, macs = head.alone.parameters, head.alone.macs
        of_plain = parameters / self.plain.parameters
        return f"{parameters / 1e6:.3f} M\nx{of_plain:.3f}", f"{macs / 1e6:.2f} M\nx{head.of_plain:.3f}"

    def totals_table(self, plain: bool) -> Table:
        """Return a table of the totals and the memory of one worker."""
        table = _table(plain, "quantity", "value")
        for name, count in vars(self.parameters).items():
            table.add_row(f"parameters, {name}", f"{count / 1e6:.3f} M")
        table.add_row("multiply-adds per image, forward", f"{self.macs / 1e6:.1f} M")
        for name, size in vars(self.memory).items():
            table.add_row(f"memory per worker ({self.workers} on {self.device}), {name}", f"{size / 2**20:,.1f} MiB")
        return table

    def advice(self) -> str:
        """Return how to read the table, and whether the branches can be dropped at no cost."""
        deepest, lines = self.heads[-1], [_LEGEND]
        if len(self.heads) > 1 and self.fusion in ("trunk", "both"):
            lines.append(_BRANCHES_STAY.format(self.fusion, deepest.name, deepest.of_plain))
        elif len(self.heads) > 1:
            lines.append(_BRANCHES_DROP.format(self.fusion))
        return "\n".join(lines)

    def render_network(self, stream: TextIO) -> str:
        """Render the network table and the advice for printing to `stream`."""
        return _render(stream, self.network_table) + self.advice()

    def render(self, stream: TextIO) -> str:
        """Render both tables and the advice for printing to `stream`."""
        return f"{self.render_network(stream)}\n{_render(stream, self.totals_table)}".rstrip()


MAX_COLUMNS = 120
_NUMBERS = ("own\nparameters", "own MACs\nper image", "of\ntraining", "alone:\nparameters", "alone:\nMACs")
_LEGEND = """\
| marks where maps are fused. own: layers that no other head uses. of training: their share of a training step's
multiply-adds (MACs). alone: the network pruned to this head; x: its ratio to the plain backbone."""
_BRANCHES_STAY = """\
model.fusion {}: the fused map feeds the trunk, so branches can't be dropped at no cost: {} alone needs
x{:.3f} of the plain backbone's MACs; with model.fusion side it would need x1.000."""
_BRANCHES_DROP = "model.fusion {}: the trunk does not use the branches, so they can be dropped at no cost."


def _render(stream: TextIO, table: Callable[[bool], Table]) -> str:
    """Render for a terminal of at most MAX_COLUMNS columns; for a file without borders and MAX_COLUMNS wide."""
    from rich.console import Console

    terminal = Console(file=stream)
    width = min(terminal.width, MAX_COLUMNS) if terminal.is_terminal else MAX_COLUMNS
    console = Console(file=stream, width=width)
    with console.capture() as captured:  # on a closed pipe rich would exit with its own code
        console.print(table(not console.is_terminal))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _table(plain: bool, *columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, box=None, pad_edge=False) if plain else Table(*columns)


def _maps(head: HeadCost) -> str:
    return "maps " + ", ".join(dict.fromkeys(format_shape(layer.shape) for layer in head.layers))


def format_shape(shape: Shape) -> str:
    """Format a shape as in `64x32x32`."""
    return "x".join(map(str, shape))
