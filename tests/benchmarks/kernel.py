"""Kernel benchmark: spatial enhancement of ResNet-18's maps on one core, our kernel against PyTorch operations.

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
"""Channels, and height = width in pixels."""
Gate = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_formula(map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    return apply_mask(map_BCHW, torch.sigmoid(spatial_scores(map_BCHW, gamma_G, beta_G)))


def time_gate(gate: Gate, inputs: list[Tensor], gradient: Tensor) -> tuple[float, float]:
    """Return milliseconds of the forward and of the backward pass."""
    start = time.perf_counter()
    gated = gate(*inputs)
    middle = time.perf_counter()
    torch.autograd.grad(gated, inputs, gradient)
    return 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


def rows(batch: int, rounds: int) -> Iterator[list[str]]:
    for dtype, layout in ((torch.bfloat16, torch.channels_last), (torch.float32, torch.contiguous_format)):
        for channels, side in SIZES:
            features = torch.randn(batch, channels, side, side, dtype=dtype).contiguous(memory_format=layout)
            inputs = [each.requires_grad_() for each in (features, torch.randn(GROUPS), torch.ones(GROUPS))]
            gradient = torch.randn_like(features)
            measurements: dict[Gate, list[tuple[float, float]]] = {spatial_gate: [], by_formula: []}
            for _ in range(rounds + 1):
                for gate, times in measurements.items():
                    times.append(time_gate(gate, inputs, gradient))
            ours, formula = (times[1:] for times in measurements.values())  # without the first, which compiles
            yield [
                f"{channels} x {side} x {side}, {str(dtype).removeprefix('torch.')}",
                *(spread([each[way] for each in times], 1) for times in (ours, formula) for way in range(2)),
                f"{sum(map(sum, formula)) / sum(map(sum, ours)):.1f}x",
            ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = ["kernel: forward, ms", "backward", "formula: forward, ms", "backward", "ratio of both"]
    print_table([f"a map of {options.batch} images", *header], list(rows(options.batch, options.rounds)))


if __name__ == "__main__":
    main()
