"""The CPU kernel for spatial enhancement computes the formula, forward and backward."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fmfsd.cpu import cpp_extension, spatial_kernel
from fmfsd.model.spatial_enhancement import apply_mask, spatial_gate, spatial_mask, spatial_scores

SHAPES = [
    (2, 8, 4, 4, 8),
    (3, 8, 5, 3, 4),
    (2, 16, 4, 4, 4),
    (2, 16, 3, 3, 2),
    (2, 32, 7, 2, 2),
    (2, 12, 4, 4, 4),
    (2, 8, 1, 1, 4),
]
"""B, C, H, W, G: 1, 2, 4, 8, 16 and 3 channels per group; one position."""
LAYOUTS = [torch.contiguous_format, torch.channels_last]
Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def compute_formula(gates: bool, map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    mask = torch.sigmoid(spatial_scores(map_BCHW, gamma_G, beta_G))
    return apply_mask(map_BCHW, mask) if gates else mask


OPERATIONS: dict[str, tuple[Operation, Operation]] = {
    "gate": (spatial_gate, partial(compute_formula, True)),
    "mask": (spatial_mask, partial(compute_formula, False)),
}


def random_inputs(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return a random map, gamma and beta."""
    *size, groups = shape
    generator = torch.Generator().manual_seed(sum(shape))
    scales = torch.float64 if dtype == torch.float64 else torch.float32
    map_BCHW = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).contiguous(memory_format=layout)
    gamma, beta = (torch.randn(groups, generator=generator, dtype=scales) for _ in range(2))
    return [each.requires_grad_() for each in (map_BCHW, gamma, beta)]


def result_and_gradients(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    result = operation(*inputs)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    return [result, *torch.autograd.grad(result, inputs, weights)]


@pytest.fixture(autouse=True)
def require_compiler() -> None:
    assert spatial_kernel.supports(torch.zeros(1, 1, 1, 1), torch.zeros(1)), "these tests need a C++ compiler, c++"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_kernel_computes_the_formula(operation: str, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    ours, formula = OPERATIONS[operation]
    inputs = random_inputs(shape, layout)
    for one, other in zip(result_and_gradients(ours, inputs), result_and_gradients(formula, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_in_other_types_the_kernel_computes_the_formula_to_rounding(
    operation: str, dtype: torch.dtype, tolerance: float
) -> None:
    ours, formula = OPERATIONS[operation]
    inputs = random_inputs((4, 64, 16, 16, 32), torch.channels_last, dtype)
    for one, other in zip(result_and_gradients(ours, inputs), result_and_gradients(formula, inputs), strict=True):
        assert (one.dtype, one.is_contiguous(memory_format=torch.channels_last) or one.ndim == 1) == (other.dtype, True)
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_the_mask_of_half_precision_is_computed_in_fp32() -> None:
    halves = random_inputs((2, 16, 8, 8, 4), torch.channels_last, torch.bfloat16)
    full = [halves[0].detach().float(), *halves[1:]]
    torch.testing.assert_close(spatial_mask(*halves), spatial_mask(*full), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_groups_that_are_all_zero_have_finite_gradients(operation: str) -> None:
    _, gamma, beta = random_inputs((2, 8, 4, 4, 4), torch.contiguous_format)
    zeros = torch.zeros(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    ours, formula = OPERATIONS[operation]
    for one, other in zip(
        result_and_gradients(ours, [zeros, gamma, beta]),
        result_and_gradients(formula, [zeros, gamma, beta]),
        strict=True,
    ):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


def test_values_that_are_not_finite_propagate() -> None:
    map_BCHW, gamma, beta = random_inputs((2, 8, 4, 4, 4), torch.channels_last, torch.bfloat16)
    with torch.no_grad():
        map_BCHW[0, 0, 0, 0] = torch.nan
    gated = spatial_gate(map_BCHW, gamma, beta)
    assert gated[0, :2].isnan().all()
    assert gated[1].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_of_any_memory_layout_are_accepted(layout: torch.memory_format) -> None:
    inputs = random_inputs((2, 8, 4, 4, 4), layout)
    spread = torch.ones(1, dtype=torch.float64).expand(2, 8, 4, 4)
    for operation in OPERATIONS["gate"]:
        (map_gradient,) = torch.autograd.grad(operation(*inputs), inputs[:1], spread)
        torch.testing.assert_close(map_gradient, torch.autograd.grad(operation(*inputs), inputs[:1], spread.clone())[0])


def test_views_of_larger_maps_are_accepted() -> None:
    map_BCHW, gamma, beta = random_inputs((2, 8, 6, 6, 4), torch.contiguous_format)
    part = map_BCHW[:, :, 1:5, ::2]
    torch.testing.assert_close(spatial_gate(part, gamma, beta), compute_formula(True, part, gamma, beta))


def test_results_depend_neither_on_the_batch_nor_on_the_threads() -> None:
    map_BCHW, gamma, beta = random_inputs((6, 32, 8, 8, 8), torch.channels_last, torch.float32)
    one_by_one = torch.cat([spatial_gate(each, gamma, beta) for each in map_BCHW.split(1)])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    as_a_batch = spatial_gate(map_BCHW, gamma, beta)
    torch.set_num_threads(threads)
    assert torch.equal(one_by_one, as_a_batch)


def test_without_a_compiler_pytorchs_operations_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs((2, 8, 4, 4, 4), torch.contiguous_format)
    kernel_result = spatial_gate(*inputs)
    monkeypatch.setattr(cpp_extension, "load_library", lambda *names: None)
    assert not spatial_kernel.supports(*inputs[:2])
    torch.testing.assert_close(spatial_gate(*inputs), kernel_result)
