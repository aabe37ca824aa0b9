"""Who learns from whom, and by which distance: each switch of the loss by its formula and by where gradients go."""

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
"""Of each head that learns from another: which ones, by number, or the mean of all."""


def outputs(heads: int = HEADS) -> Outputs:
    generator = torch.Generator().manual_seed(0)

    def draw(width: int) -> Tensor:
        return torch.randn(6, width, generator=generator, dtype=torch.float64).requires_grad_()

    return Outputs([draw(5) for _ in range(heads)], [draw(7) for _ in range(2)], draw(7))


def loss(**changes: object) -> SelfDistillLoss:
    return SelfDistillLoss(**{"alpha": ALPHA, "beta": BETA, "temperature": TEMPERATURE, **changes})  # type: ignore[arg-type]


def targets(teacher: str, head: int, logits: list[Tensor]) -> list[Tensor]:
    """The logits that a head learns from."""
    who = TEACHERS[teacher].get(head, "")
    return [torch.stack(logits).mean(0)] if who == "mean" else [logits[int(number)] for number in who]


def soft(student: Tensor, teacher: Tensor) -> Tensor:
    return -(F.softmax(teacher / TEMPERATURE, 1) * F.log_softmax(student / TEMPERATURE, 1)).sum(1).mean()


def by_hand(teacher: str, found: Outputs) -> tuple[Tensor, Tensor]:
    """Label and soft-target term, the teachers' predictions held fixed."""
    fixed = [logits.detach() for logits in found.logits]
    label, soft_target = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for head, student in enumerate(found.logits):
        taught_by = targets(teacher, head, fixed)
        label = label + (1 - ALPHA * bool(taught_by)) * F.cross_entropy(student, LABELS)
        if taught_by:
            soft_target = soft_target + ALPHA * torch.stack([soft(student, each) for each in taught_by]).mean()
    return label, soft_target


@pytest.mark.parametrize("teacher", TEACHERS)
def test_each_teacher_has_the_value_and_the_gradient_of_its_formula(teacher: str) -> None:
    found = outputs()
    terms, (label, soft_target) = loss(teacher=teacher).terms(found, LABELS), by_hand(teacher, found)
    torch.testing.assert_close((terms.label, terms.soft_target), (label, soft_target))
    ours = torch.autograd.grad(terms.label + terms.soft_target, found.logits)
    torch.testing.assert_close(ours, torch.autograd.grad(label + soft_target, found.logits))


@pytest.mark.parametrize("teacher", TEACHERS)
def test_only_who_learns_has_a_gradient_of_the_soft_targets(teacher: str) -> None:
    found = outputs()
    gradients = torch.autograd.grad(
        loss(teacher=teacher).terms(found, LABELS).soft_target, found.logits, allow_unused=True
    )
    assert {head for head, gradient in enumerate(gradients) if gradient is not None} == set(TEACHERS[teacher])


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("heads", [1, 2])
def test_teachers_are_those_of_fewer_heads_too(teacher: str, heads: int) -> None:
    """The backbone alone learns from nobody; of two heads, fused and deepest, each can be the other's teacher."""
    learners = {"deepest": [0], "ensemble": [0, 1], "fused": [1], "all_pairs": [0, 1]}[teacher] if heads == 2 else []
    found = outputs(heads)
    soft_target = loss(teacher=teacher).terms(found, LABELS).soft_target
    gradients = (
        torch.autograd.grad(soft_target, found.logits, allow_unused=True) if learners else [None] * len(found.logits)
    )
    assert [head for head, gradient in enumerate(gradients) if gradient is not None] == learners
    assert (soft_target.item() == 0) == (not learners)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_without_alpha_no_teacher_counts(teacher: str) -> None:
    """Identity 8, of every teacher."""
    found = outputs()
    terms = loss(teacher=teacher, alpha=0.0).terms(found, LABELS)
    torch.testing.assert_close(terms.label, sum(F.cross_entropy(logits, LABELS) for logits in found.logits))
    assert terms.soft_target.item() == 0


@pytest.mark.parametrize("teacher", TEACHERS)
def test_heads_that_agree_teach_one_another_nothing(teacher: str) -> None:
    """Identity 10, of every teacher."""
    same = torch.randn(6, 5, dtype=torch.float64)
    logits = [same.clone().requires_grad_() for _ in range(HEADS)]
    soft_target = loss(teacher=teacher).terms(Outputs(logits, [], same), LABELS).soft_target
    gradients = torch.autograd.grad(soft_target, [logits[head] for head in TEACHERS[teacher]])
    assert all(gradient.abs().max() < 1e-15 for gradient in gradients)


def test_t_squared_multiplies_the_soft_targets_alone() -> None:
    without, with_it = (loss(t_squared=flag).terms(outputs(), LABELS) for flag in (False, True))
    torch.testing.assert_close(with_it.soft_target, TEMPERATURE**2 * without.soft_target)
    torch.testing.assert_close(with_it.label, without.label)


def test_the_mean_square_is_a_term_of_its_own_and_no_norm() -> None:
    found = outputs()
    terms = loss(feature="mse").terms(found, LABELS)
    expected = BETA * sum((each - found.deepest_feature).square().mean() for each in found.features)
    torch.testing.assert_close(terms.feature, expected)
    assert terms.squares_F.shape == (0,)
    total = loss(feature="mse").total(terms, terms.squares_F, world_size=1)
    torch.testing.assert_close(total, terms.label + terms.soft_target + expected)
    (deepest,) = torch.autograd.grad(terms.feature, found.deepest_feature, allow_unused=True)
    assert deepest is None


@pytest.mark.parametrize("teacher", TEACHERS)
def test_two_workers_mean_terms_are_those_of_the_whole_batch(teacher: str) -> None:
    """Identity 11, of every term that is a mean."""
    found, kind = outputs(), loss(teacher=teacher, feature="mse")
    halves = [slice(0, 3), slice(3, 6)]
    parts = [
        Outputs(
            [each[half] for each in found.logits], [each[half] for each in found.features], found.deepest_feature[half]
        )
        for half in halves
    ]
    ours = [kind.terms(part, LABELS[half]) for part, half in zip(parts, halves, strict=True)]
    whole = kind.terms(found, LABELS)
    for name in ("label", "soft_target", "feature"):
        mean = torch.stack([getattr(terms, name) for terms in ours]).mean()
        torch.testing.assert_close(mean, getattr(whole, name))


@pytest.mark.parametrize("feature", ["batch_norm", "mse", "none"])
def test_without_features_there_is_no_feature_term(feature: str) -> None:
    found = Outputs(outputs().logits, [], outputs().deepest_feature)
    terms = loss(feature=feature).terms(found, LABELS)
    assert (terms.feature.item(), terms.squares_F.shape) == (0, (0,))


def test_label_weight_is_of_the_branches_only() -> None:
    found = outputs()
    terms = loss(label_weight=0.25).terms(found, LABELS)
    losses = [F.cross_entropy(logits, LABELS) for logits in found.logits]
    torch.testing.assert_close(terms.label, losses[-1] + 0.25 * (1 - ALPHA) * torch.stack(losses[:-1]).sum())
