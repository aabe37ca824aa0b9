"""The losses: values, gradients, and detached tensors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fmfsd.losses import SelfDistillLoss, global_norm_surrogate, soft_target_loss, squared_distances
from fmfsd.model.network import Outputs

LOSS = SelfDistillLoss(alpha=0.3, beta=0.03, temperature=3.0)


def outputs(*, heads: int = 4, features: int = 2, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.randn(6, width, generator=generator, dtype=torch.float64).requires_grad_()

    return Outputs([draw(5) for _ in range(heads)], [draw(7) for _ in range(features)], draw(7))


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def total(loss: SelfDistillLoss, network_outputs: Outputs) -> Tensor:
    terms = loss.terms(network_outputs, LABELS)
    return loss.total(terms, terms.squares_F.detach(), world_size=1)


def test_the_loss_equals_the_formula_of_the_method() -> None:
    network_outputs = outputs()
    *students, teacher = network_outputs.logits
    expected = F.cross_entropy(teacher, LABELS)
    for student in students:
        soft = -(F.softmax(teacher / 3, 1) * F.log_softmax(student / 3, 1)).sum(1).mean()
        expected = expected + 0.7 * F.cross_entropy(student, LABELS) + 0.3 * soft
    terms = LOSS.terms(network_outputs, LABELS)
    torch.testing.assert_close(terms.label + terms.soft_target, expected)
    norms = torch.stack(
        [torch.linalg.norm(feature - network_outputs.deepest_feature) for feature in network_outputs.features]
    )
    torch.testing.assert_close(terms.squares_F.sqrt(), norms)


def test_without_distillation_it_is_deep_supervision() -> None:
    """Identity 8."""
    network_outputs = outputs()
    plain = total(SelfDistillLoss(alpha=0.0, beta=0.0, temperature=3.0), network_outputs)
    torch.testing.assert_close(plain, sum(F.cross_entropy(logits, LABELS) for logits in network_outputs.logits))


def test_the_teacher_gets_no_gradient_from_its_students() -> None:
    """Identity 9: the deepest head's gradient is that of its own label loss."""
    network_outputs = outputs()
    total(LOSS, network_outputs).backward()
    teacher_logits = network_outputs.logits[-1].detach().requires_grad_()
    F.cross_entropy(teacher_logits, LABELS).backward()
    torch.testing.assert_close(network_outputs.logits[-1].grad, teacher_logits.grad)
    assert network_outputs.deepest_feature.grad is None


def test_equal_logits_have_no_soft_target_gradient() -> None:
    """Identity 10: the divergence is 0, so the cross-entropy is the target's entropy, with gradient 0."""
    teacher = torch.randn(6, 5, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = soft_target_loss(student, teacher, temperature=2.0)
    target = F.softmax(teacher / 2, 1)
    torch.testing.assert_close(loss.detach(), -(target * target.log()).sum(1).mean())
    loss.backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), rtol=0, atol=1e-15)


def test_the_gradient_of_a_feature_distance_of_0_is_finite() -> None:
    """Identity 10."""
    teacher = torch.randn(4, 7)
    feature = teacher.clone().requires_grad_()
    squares = squared_distances([feature], teacher)
    global_norm_surrogate(squares, squares.detach(), world_size=2).backward()
    assert feature.grad is not None
    assert torch.equal(feature.grad, torch.zeros_like(teacher))


def test_the_soft_target_loss_has_no_factor_t_squared() -> None:
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    assert soft_target_loss(student, teacher, temperature=1e6).item() == pytest.approx(math.log(5), rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_the_mean_over_workers_has_the_value_and_gradient_of_the_global_norm(world_size: int) -> None:
    """Each worker's own norm would be too small by a factor of sqrt(world_size)."""
    differences = torch.randn(world_size, 3, 7, dtype=torch.float64).requires_grad_()
    norm = torch.linalg.norm(differences)
    (expected,) = torch.autograd.grad(norm, differences)
    squares = differences.detach().square().sum().view(1)
    mean_gradient = torch.zeros_like(differences)
    for worker in range(world_size):
        local = differences[worker].square().sum().view(1)
        surrogate = global_norm_surrogate(local, squares, world_size=world_size)
        torch.testing.assert_close(surrogate, norm)
        (gradient,) = torch.autograd.grad(surrogate, differences)
        mean_gradient += gradient / world_size
    torch.testing.assert_close(mean_gradient, expected, rtol=1e-14, atol=1e-15)


def test_label_smoothing_and_label_weight_are_used() -> None:
    network_outputs = outputs(features=0)
    smooth = SelfDistillLoss(alpha=0.0, beta=0.0, temperature=3.0, label_weight=0.5, label_smoothing=0.1)
    losses = [F.cross_entropy(logits, LABELS, label_smoothing=0.1) for logits in network_outputs.logits]
    torch.testing.assert_close(total(smooth, network_outputs), losses[-1] + 0.5 * (losses[0] + losses[1] + losses[2]))


def test_a_plain_network_has_only_the_label_loss() -> None:
    network_outputs = outputs(heads=1, features=0)
    terms = LOSS.terms(network_outputs, LABELS)
    assert terms.soft_target.item() == 0
    assert terms.squares_F.shape == (0,)
    torch.testing.assert_close(total(LOSS, network_outputs), F.cross_entropy(network_outputs.logits[0], LABELS))


def test_losses_of_bf16_outputs_are_computed_in_fp32() -> None:
    network_outputs = outputs()
    half = Outputs(
        [each.bfloat16() for each in network_outputs.logits],
        [each.bfloat16() for each in network_outputs.features],
        network_outputs.deepest_feature,
    )
    terms = LOSS.terms(half, LABELS)
    assert terms.label.dtype == torch.float32
