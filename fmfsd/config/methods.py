"""The config values that each `method` stands for; a config may choose all other values freely.

BYOT: Zhang et al. 2019 (arXiv:1905.08094), with attention TPAMI 2022 (doi 10.1109/TPAMI.2021.3067100); deep
supervision: Lee et al. 2015 (arXiv:1409.5185); DKS: Sun et al. 2019 (arXiv:1906.00675); EED: arXiv:2104.00299; label
smoothing: Szegedy et al. 2015 (arXiv:1512.00567). Two differences from these sources: alpha weights the mean over a
head's teachers, where DKS adds the sum over the teachers to the full label loss; a bottleneck's width is a quarter of
the last map's channels, where BYOT's code uses 128 for every ResNet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A training method: the `allowed_values` of keys, and `default_values`, which a config may change.

    A key that a config does not set gets the default value, or the first of the allowed values.
    """

    allowed_values: Mapping[str, tuple[Any, ...]]
    default_values: Mapping[str, Any] = field(default_factory=dict)


_NO_FUSION: Mapping[str, tuple[Any, ...]] = {"model.fusion": ("none",)}
_BACKBONE_ALONE = {**_NO_FUSION, "model.branches": ([],)}

METHODS: Mapping[str, Method] = {
    "fmfsd": Method({"model.fusion": ("trunk", "side", "both")}),
    "fmfsd_side": Method({"model.fusion": ("side",)}),
    "byot": Method(_NO_FUSION, {"model.branch": "bottleneck"}),
    "byot_attention": Method({**_NO_FUSION, "model.branch": ("attention",)}),
    "deep_supervision": Method({**_NO_FUSION, "distill.alpha": (0,), "distill.beta": (0,)}),
    "dks": Method({**_NO_FUSION, "distill.teacher": ("all_pairs",)}, {"distill.feature": "none"}),
    "eed": Method({**_NO_FUSION, "distill.teacher": ("ensemble",)}, {"distill.feature": "none"}),
    "plain": Method(_BACKBONE_ALONE),
    "label_smoothing": Method(_BACKBONE_ALONE, {"train.label_smoothing": 0.1}),
}
