"""What a config costs, as a value and as a table; what finds it out needs torch (fmfsd.probe)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


Shape = tuple[int, int, int]
"""Channels, height and width of a map."""


@dataclass(frozen=True)
class HeadCost:
    """A head, and the map that its branch starts from: after which stage, and its shape."""

    name: str
    tap: str
    shape: Shape


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

    `buffers` are batch statistics, `optimizer` momenta and averages, `activations` what the backward pass needs,
    counted as on a CPU, `data` the shards of all splits at their published sizes (of an image folder: nothing).
    Kernels' workspaces, the libraries' own memory and what is held for a moment come on top.
    """

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    activations: int
    data: int
    total: int


@dataclass(frozen=True)
class Probe:
    """`macs` are the multiply-adds of one image's forward pass in training, all heads included."""

    workers: int
    heads: tuple[HeadCost, ...]
    parameters: ParameterCount
    macs: int
    memory: MemoryCost

    def table(self) -> Table:
        """For people."""
        from rich.table import Table

        table = Table("what", "how much")
        for head in self.heads:
            table.add_row(f"head {head.name}", f"from {head.tap}, {' x '.join(map(str, head.shape))}")
        for name, count in vars(self.parameters).items():
            table.add_row(f"parameters, {name}", f"{count / 1e6:.3f} M")
        table.add_row("multiply-adds an image, forward", f"{self.macs / 1e6:.1f} M")
        for name, size in vars(self.memory).items():
            table.add_row(f"memory of a worker of {self.workers}, {name}", f"{size / 2**20:,.1f} MiB")
        return table
