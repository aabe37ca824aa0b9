"""Our kernel for spatial enhancement on CPUs computes what the formula says, forward and backward."""

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
"""B, C, H, W, G: 1, 2, 4, 8, 16 and 3 channels a group; one position."""
LAYOUTS = [torch.contiguous_format, torch.channels_last]
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_formula(gates: bool, map_BCHW: Tensor, gamma_G: Tensor, beta_G: Tensor) -> Tensor:
    mask = torch.sigmoid(spatial_scores(map_BCHW, gamma_G, beta_G))
    return apply_mask(map_BCHW, mask) if gates else mask


FORMS: dict[str, tuple[Form, Form]] = {
    "gate": (spatial_gate, partial(by_formula, True)),
    "mask": (spatial_mask, partial(by_formula, False)),
}


def drawn(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A map, gamma and beta."""
    *size, groups = shape
    generator = torch.Generator().manual_seed(sum(shape))
    scales = torch.float64 if dtype == torch.float64 else torch.float32
    made = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).contiguous(memory_format=layout)
    gamma, beta = (torch.randn(groups, generator=generator, dtype=scales) for _ in range(2))
    return [each.requires_grad_() for each in (made, gamma, beta)]


def with_gradients(form: Form, inputs: list[Tensor]) -> list[Tensor]:
    result = form(*inputs)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    return [result, *torch.autograd.grad(result, inputs, weights)]


@pytest.fixture(autouse=True)
def compiled() -> None:
    assert spatial_kernel.takes(torch.zeros(1, 1, 1, 1), torch.zeros(1)), "these tests need a C++ compiler, c++"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_formula(form: str, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    ours, formula = FORMS[form]
    inputs = drawn(shape, layout)
    for one, other in zip(with_gradients(ours, inputs), with_gradients(formula, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_in_other_types_it_is_the_formula_to_rounding(form: str, dtype: torch.dtype, within: float) -> None:
    ours, formula = FORMS[form]
    inputs = drawn((4, 64, 16, 16, 32), torch.channels_last, dtype)
    for one, other in zip(with_gradients(ours, inputs), with_gradients(formula, inputs), strict=True):
        assert (one.dtype, one.is_contiguous(memory_format=torch.channels_last) or one.ndim == 1) == (other.dtype, True)
        assert (one - other).abs().max() <= within * other.abs().max()


def test_the_mask_of_half_precision_is_computed_in_fp32() -> None:
    halves = drawn((2, 16, 8, 8, 4), torch.channels_last, torch.bfloat16)
    full = [halves[0].detach().float(), *halves[1:]]
    torch.testing.assert_close(spatial_mask(*halves), spatial_mask(*full), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_groups_that_are_all_zero_have_finite_gradients(form: str) -> None:
    _, gamma, beta = drawn((2, 8, 4, 4, 4), torch.contiguous_format)
    zeros = torch.zeros(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    ours, formula = FORMS[form]
    for one, other in zip(
        with_gradients(ours, [zeros, gamma, beta]), with_gradients(formula, [zeros, gamma, beta]), strict=True
    ):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


def test_what_is_not_finite_stays_so() -> None:
    made, gamma, beta = drawn((2, 8, 4, 4, 4), torch.channels_last, torch.bfloat16)
    with torch.no_grad():
        made[0, 0, 0, 0] = torch.nan
    gated = spatial_gate(made, gamma, beta)
    assert gated[0, :2].isnan().all()
    assert gated[1].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_gradient_may_lie_in_memory_as_it_likes(layout: torch.memory_format) -> None:
    inputs = drawn((2, 8, 4, 4, 4), layout)
    spread = torch.ones(1, dtype=torch.float64).expand(2, 8, 4, 4)
    for form in FORMS["gate"]:
        (of_the_map,) = torch.autograd.grad(form(*inputs), inputs[:1], spread)
        torch.testing.assert_close(of_the_map, torch.autograd.grad(form(*inputs), inputs[:1], spread.clone())[0])


def test_a_view_of_larger_maps_is_taken_as_it_is() -> None:
    made, gamma, beta = drawn((2, 8, 6, 6, 4), torch.contiguous_format)
    part = made[:, :, 1:5, ::2]
    torch.testing.assert_close(spatial_gate(part, gamma, beta), by_formula(True, part, gamma, beta))


def test_results_depend_neither_on_the_batch_nor_on_the_threads() -> None:
    made, gamma, beta = drawn((6, 32, 8, 8, 8), torch.channels_last, torch.float32)
    alone = torch.cat([spatial_gate(each, gamma, beta) for each in made.split(1)])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    together = spatial_gate(made, gamma, beta)
    torch.set_num_threads(threads)
    assert torch.equal(alone, together)


def test_without_a_compiler_pytorchs_operations_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = drawn((2, 8, 4, 4, 4), torch.contiguous_format)
    by_the_kernel = spatial_gate(*inputs)
    monkeypatch.setattr(cpp_extension, "library", lambda *names: None)
    assert not spatial_kernel.takes(*inputs[:2])
    torch.testing.assert_close(spatial_gate(*inputs), by_the_kernel)
