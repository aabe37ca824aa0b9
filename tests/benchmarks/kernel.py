"""Spatial enhancement of ResNet-18's maps on one core: our kernel against the formula by PyTorch's operations.

python -m tests.benchmarks.kernel [--rounds N] [--batch N]
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fmfsd.model.spatial_enhancement import apply_mask, spatial_gate, spatial_scores
from tests.benchmarks.table import print_table, spread

GROUPS = 32
SIZES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels, and pixels a side."""
Gate = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_formula(map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    return apply_mask(map_BCHW, torch.sigmoid(spatial_scores(map_BCHW, gamma_G, beta_G)))


def timed(gate: Gate, inputs: list[Tensor], gradient: Tensor) -> tuple[float, float]:
    """Milliseconds forward and backward."""
    start = time.perf_counter()
    gated = gate(*inputs)
    middle = time.perf_counter()
    torch.autograd.grad(gated, inputs, gradient)
    return 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


def rows(batch: int, rounds: int) -> Iterator[list[str]]:
    for dtype, layout in ((torch.bfloat16, torch.channels_last), (torch.float32, torch.contiguous_format)):
        for channels, side in SIZES:
            made = torch.randn(batch, channels, side, side, dtype=dtype).contiguous(memory_format=layout)
            inputs = [each.requires_grad_() for each in (made, torch.randn(GROUPS), torch.ones(GROUPS))]
            gradient = torch.randn_like(made)
            found: dict[Gate, list[tuple[float, float]]] = {spatial_gate: [], by_formula: []}
            for _ in range(rounds + 1):
                for gate, times in found.items():
                    times.append(timed(gate, inputs, gradient))
            ours, formula = (times[1:] for times in found.values())  # without the first, which compiles
            yield [
                f"{channels} x {side} x {side}, {str(dtype).removeprefix('torch.')}",
                *(spread([each[way] for each in times], 1) for times in (ours, formula) for way in range(2)),
                f"{sum(map(sum, formula)) / sum(map(sum, ours)):.1f}x",
            ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    header = ["kernel: forward, ms", "backward", "formula: forward, ms", "backward", "ratio of both"]
    print_table([f"a map of {asked.batch} images", *header], list(rows(asked.batch, asked.rounds)))


if __name__ == "__main__":
    main()
