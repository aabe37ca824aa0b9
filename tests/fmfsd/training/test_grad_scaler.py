"""The loss scale follows torch.amp.GradScaler."""

import pytest
import torch

from fmfsd.engine.grad_scaler import GradScaler
from fmfsd.errors import NonFiniteLossError


def test_the_scale_equals_that_of_torch() -> None:
    """Two doublings and three overflows, one of them just before a doubling."""
    loss_scale, reference = GradScaler(), torch.amp.GradScaler("cpu")
    weights = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.0)
    for step in range(8100):
        gradient = torch.inf if step in (0, 2500, 6499) else 1.0
        weights.grad = torch.tensor([gradient * loss_scale.value])
        reference.scale(torch.ones(1))
        reference.step(optimizer)
        reference.update()
        assert loss_scale.unscale_([torch.tensor([gradient * loss_scale.value])]) == (gradient == 1.0)
        assert loss_scale.value == reference.get_scale(), step
    assert loss_scale.value == 2.0**15


def test_gradients_are_divided_in_place() -> None:
    gradients = [torch.full((2,), 2.0**16), torch.full((1,), 2.0**-10)]
    assert GradScaler().unscale_(gradients)
    assert [gradient.tolist() for gradient in gradients] == [[1.0, 1.0], [2.0**-26]]


def test_overflow_without_a_scale_is_an_error() -> None:
    scale = GradScaler(value=2.0)
    scale.update(finite=False)
    with pytest.raises(NonFiniteLossError, match="even with a loss scale of 1"):
        scale.update(finite=False)


def test_the_scale_is_loaded_and_an_empty_state_changes_nothing() -> None:
    saved, loaded = GradScaler(value=8.0, good_steps=5), GradScaler()
    loaded.load({})
    assert loaded == GradScaler()
    loaded.load(saved.state())
    assert loaded == saved
