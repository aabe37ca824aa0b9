"""What a config costs, as a value and as a table; what finds it out needs torch (fmfsd.cost.measure.probe)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.table import Table


Device = Literal["cpu", "cuda"]
Shape = tuple[int, int, int]
"""Channels, height and width of a map."""


ChannelStatistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of each channel, as fractions of full scale."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of one image's forward pass."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Layer:
    """A step of a head's path, as people call it, and the shape of the map behind it."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class HeadCost:
    """A head, and the map that its branch starts from: after which block or stage, and its shape.

    `path` in words, and its `layers`. `own` is of layers that neither the backbone has nor another head needs, and
    `training_share` their part of a training step's multiply-adds. `alone` is a network for this head and nothing else,
    as `fmfsd.model.prune` makes it, and `of_plain` its multiply-adds over those of the plain backbone. `exits_of_plain`
    is the same ratio for an image that leaves here after the early heads before were computed; None if this head is
    neither an early head nor the deepest one, since an early exit never computes it.
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
    """`backbone` includes the deepest head, `branches` their heads and feature layers, `fusion` all that is between."""

    total: int
    backbone: int
    branches: int
    fusion: int


@dataclass(frozen=True)
class MemoryCost:
    """Bytes that one worker holds when the forward pass of a micro-batch has ended.

    `buffers` are batch statistics, `optimizer` momenta and averages, `activations` what the backward pass needs, `data`
    the shards of all splits in memory, at their published sizes (of an image folder none). Kernels' workspaces, the
    libraries' own memory and what is held for a moment come on top. `offloaded` is no part of the total: it is the
    optimizer's, in the memory of the worker's machine, if engine.offload puts it there.
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
class Probe:
    """`macs` are the multiply-adds of one image's forward pass in training, all heads included; a backward pass takes
    about twice as many again.

    `plain` is the backbone with its own classifier, `trunk` the backbone without it, `shared` what else more than one
    head needs. `fusion` is `model.fusion`. `pretrained_statistics`: what the pretrained weights were trained with.
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
        """The network, a head a row, within 120 columns; `plain`: without lines, for a file."""
        table = _table(plain, "head", "path, and its maps", *_NUMBERS)
        table.add_row("", "backbone", *self._trained(self.trunk))
        if self.shared.parameters or self.shared.macs:
            table.add_row("", "shared by heads", *self._trained(self.shared))
        for head in self.heads:
            table.add_row(head.name, f"{head.path}\n{_maps(head)}", *self._trained(head.own), *self._alone(head))
        table.add_row("all", "", *self._trained(Cost(self.parameters.total, self.macs)))
        return table

    def _trained(self, cost: Cost) -> tuple[str, str, str]:
        return f"{cost.parameters / 1e6:.3f} M", f"{cost.macs / 1e6:.2f} M", f"{cost.macs / self.macs:.1%}"

    def _alone(self, head: HeadCost) -> tuple[str, str]:
        parameters, macs = head.alone.parameters, head.alone.macs
        of_plain = parameters / self.plain.parameters
        return f"{parameters / 1e6:.3f} M\nx{of_plain:.3f}", f"{macs / 1e6:.2f} M\nx{head.of_plain:.3f}"

    def table(self, plain: bool) -> Table:
        """Sums, and the memory of a worker."""
        table = _table(plain, "what", "how much")
        for name, count in vars(self.parameters).items():
            table.add_row(f"parameters, {name}", f"{count / 1e6:.3f} M")
        table.add_row("multiply-adds an image, forward", f"{self.macs / 1e6:.1f} M")
        for name, size in vars(self.memory).items():
            table.add_row(f"memory of a worker of {self.workers} on {self.device}, {name}", f"{size / 2**20:,.1f} MiB")
        return table

    def advice(self) -> str:
        """What the table should not be read without."""
        deepest, said = self.heads[-1], [_HOW_TO_READ]
        if len(self.heads) > 1 and self.fusion in ("trunk", "both"):
            said.append(_NOT_FOR_FREE.format(self.fusion, deepest.name, deepest.of_plain))
        elif len(self.heads) > 1:
            said.append(_FOR_FREE.format(self.fusion))
        return "\n".join(said)

    def network_text(self, stream: TextIO) -> str:
        """For people, to be printed to `stream`."""
        return _printed(stream, self.network_table) + self.advice()

    def text(self, stream: TextIO) -> str:
        """All that is known, for people, to be printed to `stream`."""
        return f"{self.network_text(stream)}\n{_printed(stream, self.table)}".rstrip()


MOST_COLUMNS = 120
_NUMBERS = ("own\nparameters", "own MACs\nan image", "of\ntraining", "alone:\nparameters", "alone:\nMACs")
_HOW_TO_READ = """\
| is where a map is fused. own: layers that no other head needs; of training: their share of the forward multiply-adds
(MACs), and of the backward ones, which are about twice as many for all. alone: a network for this head and no other,
and its ratio to the plain backbone."""
_NOT_FOR_FREE = """\
model.fusion {}: the fused map feeds the trunk, so branches can't be dropped for free: {} alone is x{:.3f} of the
plain backbone's MACs; with side it would be x1.000."""
_FOR_FREE = "model.fusion {}: the trunk is untouched, so that branches can be dropped for free."


def _printed(stream: TextIO, table: Callable[[bool], Table]) -> str:
    """As wide as a terminal, at most MOST_COLUMNS; without lines and MOST_COLUMNS wide for a file."""
    from rich.console import Console

    found = Console(file=stream)
    width = min(found.width, MOST_COLUMNS) if found.is_terminal else MOST_COLUMNS
    console = Console(file=stream, width=width)
    with console.capture() as captured:  # rich answers a reader who has gone by its own exit code
        console.print(table(not console.is_terminal))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _table(plain: bool, *columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, box=None, pad_edge=False) if plain else Table(*columns)


def _maps(head: HeadCost) -> str:
    return "maps " + ", ".join(dict.fromkeys(dimensions(layer.shape) for layer in head.layers))


def dimensions(shape: Shape) -> str:
    """As `64x32x32`."""
    return "x".join(map(str, shape))
