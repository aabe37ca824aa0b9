"""BYOT and BYOT with attention: outputs and loss compared with a reference implementation."""

import pytest
import torch
from torch import Tensor

from fmfsd.engine.build import build_loss
from fmfsd.model.network import BranchNetwork
from tests.helpers import restated
from tests.helpers.networks import make_config, make_network
from tests.helpers.restated import ReferenceOutputs

LABELS = torch.tensor([7, 0, 99])
THREE_TAPS = ("model.backbone=resnet20", "model.branches=[stage1, stage2.block1, stage2]")


def reference_outputs(network: BranchNetwork, images: Tensor, *, num_features: int) -> ReferenceOutputs:
    """Return h_i from each branch's pooled map and phi_i(f_i) of the shallowest `num_features` branches."""
    maps = dict[str, Tensor]()
    deepest = network.backbone(images, lambda tap, x: maps.setdefault(tap, x)).mean((2, 3))
    f = [branch(maps[tap]).mean((2, 3)) for tap, branch in zip(network.taps, network.branches, strict=True)]
    heads = [*network.heads, network.deepest_head]
    logits = [head.classifier(feature) for head, feature in zip(heads, [*f, deepest], strict=True)]
    features = [network.projections[i](f[i]) for i in range(num_features)]
    return ReferenceOutputs(logits, features, deepest)


@pytest.mark.parametrize(("method", "num_features"), [("byot", 3), ("byot_attention", 2)])
def test_the_loss_is_that_of_the_published_code(method: str, num_features: int) -> None:
    """BYOT with attention has no feature loss on the branch next to the deepest head."""
    changes = (f"method={method}", *THREE_TAPS)
    network, loss = make_network(*changes).double().train(), build_loss(make_config(*changes))
    assert isinstance(network, BranchNetwork)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    terms = loss.terms(network(images), LABELS)
    reported = terms.label + terms.soft_target + loss.beta * terms.squares_F.sqrt().sum()
    expected = reference_outputs(network, images, num_features=num_features)
    torch.testing.assert_close(reported, restated.loss(expected, LABELS, alpha=0.3, beta=0.03, temperature=3.0))
    assert len(network.projections) == num_features


def test_one_branch_with_attention_has_no_feature_loss() -> None:
    assert (
        len(make_network("method=byot_attention", "model.backbone=resnet8", "model.branches=[stage2]").projections) == 0
    )
