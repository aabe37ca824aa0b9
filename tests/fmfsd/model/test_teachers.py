"""Teachers and feature distances of the loss: each option compared with its formula, and where gradients flow."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fmfsd.losses import SelfDistillLoss
from fmfsd.model.network import Outputs

ALPHA, BETA, TEMPERATURE = 0.4, 0.05, 2.0
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
HEADS = 4
TEACHERS = {
    "deepest": {0: "3", 1: "3", 2: "3"},
    "ensemble": dict.fromkeys(range(HEADS), "mean"),
    "fused": {0: "2", 1: "2", 3: "2"},
    "all_pairs": {0: "123", 1: "023", 2: "013", 3: "012"},
}
"""The teachers of each head: the numbers of other heads, or the mean of all heads."""


def outputs(heads: int = HEADS) -> Outputs:
    generator = torch.Generator().manual_seed(0)

    def draw(width: int) -> Tensor:
        return torch.randn(6, width, generator=generator, dtype=torch.float64).requires_grad_()

    return Outputs([draw(5) for _ in range(heads)], [draw(7) for _ in range(2)], draw(7))


def loss(**changes: object) -> SelfDistillLoss:
    return SelfDistillLoss(**{"alpha": ALPHA, "beta": BETA, "temperature": TEMPERATURE, **changes})  # type: ignore[arg-type]


def targets(teacher: str, head: int, logits: list[Tensor]) -> list[Tensor]:
    """Return the logits of a head's teachers."""
    teachers = TEACHERS[teacher].get(head, "")
    return [torch.stack(logits).mean(0)] if teachers == "mean" else [logits[int(number)] for number in teachers]


def soft(student: Tensor, teacher: Tensor) -> Tensor:
    return -(F.softmax(teacher / TEMPERATURE, 1) * F.log_softmax(student / TEMPERATURE, 1)).sum(1).mean()


def reference_terms(teacher: str, network_outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Return label and soft-target term, with detached predictions of the teachers."""
    fixed = [logits.detach() for logits in network_outputs.logits]
    label, soft_target = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for head, student in enumerate(network_outputs.logits):
        teacher_logits = targets(teacher, head, fixed)
        label = label + (1 - ALPHA * bool(teacher_logits)) * F.cross_entropy(student, LABELS)
        if teacher_logits:
            soft_target = soft_target + ALPHA * torch.stack([soft(student, each) for each in teacher_logits]).mean()
    return label, soft_target


@pytest.mark.parametrize("teacher", TEACHERS)
def test_value_and_gradient_of_each_teacher_equal_its_formula(teacher: str) -> None:
    network_outputs = outputs()
    terms, (label, soft_target) = (
        loss(teacher=teacher).terms(network_outputs, LABELS),
        reference_terms(teacher, network_outputs),
    )
    torch.testing.assert_close((terms.label, terms.soft_target), (label, soft_target))
    ours = torch.autograd.grad(terms.label + terms.soft_target, network_outputs.logits)
    torch.testing.assert_close(ours, torch.autograd.grad(label + soft_target, network_outputs.logits))


@pytest.mark.parametrize("teacher", TEACHERS)
def test_only_students_get_a_gradient_from_the_soft_targets(teacher: str) -> None:
    network_outputs = outputs()
    gradients = torch.autograd.grad(
        loss(teacher=teacher).terms(network_outputs, LABELS).soft_target, network_outputs.logits, allow_unused=True
    )
    assert {head for head, gradient in enumerate(gradients) if gradient is not None} == set(TEACHERS[teacher])


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("heads", [1, 2])
def test_every_teacher_works_with_one_or_two_heads(teacher: str, heads: int) -> None:
    """A single head has no teacher; of two heads, fused and deepest, each can be the other's teacher."""
    students = {"deepest": [0], "ensemble": [0, 1], "fused": [1], "all_pairs": [0, 1]}[teacher] if heads == 2 else []
    network_outputs = outputs(heads)
    soft_target = loss(teacher=teacher).terms(network_outputs, LABELS).soft_target
    gradients = (
        torch.autograd.grad(soft_target, network_outputs.logits, allow_unused=True)
        if students
        else [None] * len(network_outputs.logits)
    )
    assert [head for head, gradient in enumerate(gradients) if gradient is not None] == students
    assert (soft_target.item() == 0) == (not students)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_with_alpha_0_the_teacher_has_no_effect(teacher: str) -> None:
    """Identity 8, for every teacher."""
    network_outputs = outputs()
    terms = loss(teacher=teacher, alpha=0.0).terms(network_outputs, LABELS)
    torch.testing.assert_close(terms.label, sum(F.cross_entropy(logits, LABELS) for logits in network_outputs.logits))
    assert terms.soft_target.item() == 0


@pytest.mark.parametrize("teacher", TEACHERS)
def test_equal_logits_have_no_gradient_with_any_teacher(teacher: str) -> None:
    """Identity 10, for every teacher."""
    same = torch.randn(6, 5, dtype=torch.float64)
    logits = [same.clone().requires_grad_() for _ in range(HEADS)]
    soft_target = loss(teacher=teacher).terms(Outputs(logits, [], same), LABELS).soft_target
    gradients = torch.autograd.grad(soft_target, [logits[head] for head in TEACHERS[teacher]])
    assert all(gradient.abs().max() < 1e-15 for gradient in gradients)


def test_t_squared_multiplies_only_the_soft_targets() -> None:
    plain, multiplied = (loss(t_squared=flag).terms(outputs(), LABELS) for flag in (False, True))
    torch.testing.assert_close(multiplied.soft_target, TEMPERATURE**2 * plain.soft_target)
    torch.testing.assert_close(multiplied.label, plain.label)


def test_mse_is_a_separate_term_without_a_norm() -> None:
    network_outputs = outputs()
    terms = loss(feature="mse").terms(network_outputs, LABELS)
    expected = BETA * sum((each - network_outputs.deepest_feature).square().mean() for each in network_outputs.features)
    torch.testing.assert_close(terms.feature, expected)
    assert terms.squares_F.shape == (0,)
    total = loss(feature="mse").total(terms, terms.squares_F, world_size=1)
    torch.testing.assert_close(total, terms.label + terms.soft_target + expected)
    (deepest,) = torch.autograd.grad(terms.feature, network_outputs.deepest_feature, allow_unused=True)
    assert deepest is None


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_mean_of_two_workers_terms_is_that_of_the_whole_batch(teacher: str) -> None:
    """Identity 11, for every term that is a mean."""
    network_outputs, loss_function = outputs(), loss(teacher=teacher, feature="mse")
    halves = [slice(0, 3), slice(3, 6)]
    parts = [
        Outputs(
            [each[half] for each in network_outputs.logits],
            [each[half] for each in network_outputs.features],
            network_outputs.deepest_feature[half],
        )
        for half in halves
    ]
    ours = [loss_function.terms(part, LABELS[half]) for part, half in zip(parts, halves, strict=True)]
    whole = loss_function.terms(network_outputs, LABELS)
    for name in ("label", "soft_target", "feature"):
        mean = torch.stack([getattr(terms, name) for terms in ours]).mean()
        torch.testing.assert_close(mean, getattr(whole, name))


@pytest.mark.parametrize("feature", ["batch_norm", "mse", "none"])
def test_without_features_there_is_no_feature_term(feature: str) -> None:
    network_outputs = Outputs(outputs().logits, [], outputs().deepest_feature)
    terms = loss(feature=feature).terms(network_outputs, LABELS)
    assert (terms.feature.item(), terms.squares_F.shape) == (0, (0,))


def test_label_weight_applies_to_the_branches_only() -> None:
    network_outputs = outputs()
    terms = loss(label_weight=0.25).terms(network_outputs, LABELS)
    losses = [F.cross_entropy(logits, LABELS) for logits in network_outputs.logits]
    torch.testing.assert_close(terms.label, losses[-1] + 0.25 * (1 - ALPHA) * torch.stack(losses[:-1]).sum())
