"""What ZeRO keeps of each parameter, whole: gathered from the workers that have its parts, and given back to them.

Every worker makes every call. A state does not tell by how many workers or at which stage it was made. Beside
DeepSpeed's public `safe_get_...` and `safe_set_...`, a few of its attributes are used, of 0.19.8; each with its reason.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from fmfsd.engine.optimizer_state import of_parameters

_STEP = "step"
"""AdamW's count, one for all parameters that are together in a flat one; the rest has a value for each weight."""


class Zero(Protocol):
    """A stage's way to get at weights and at what its optimizer keeps."""

    def weights(self) -> dict[str, Tensor]:
        """Of each parameter, the whole."""
        ...

    def kept(self) -> dict[str, Tensor]:
        """As `kept_by` has it of an optimizer with whole parameters; empty before the first step."""
        ...

    def load(self, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None: ...


class _Parts:
    """`flats` are this worker's parts of all parameters, a few tensors, which are what `base` steps."""

    def __init__(self, network: nn.Module, base: torch.optim.Optimizer, flats: Sequence[Tensor]) -> None:
        self._parameters = dict(network.named_parameters())
        self._base, self._flats = base, flats

    def kept(self) -> dict[str, Tensor]:
        state = self._base.state.get(self._flats[0], {})
        values = {
            f"{name}.{key}": safe_get_full_optimizer_state(parameter, key)
            for name, parameter in self._parameters.items()
            for key in state
            if key != _STEP
        }
        counts = {f"{name}.{_STEP}": state[_STEP].clone() for name in self._parameters if _STEP in state}
        return values | counts

    def _begin(self) -> None:
        """DeepSpeed's optimizer keeps nothing before its first step, so there is nothing to set: one that changes
        nothing, of no rate and with gradients of zero."""
        groups, gradients = self._base.param_groups, [flat.grad for flat in self._flats]
        self._base.param_groups = [{**groups[0], "params": list(self._flats), "lr": 0.0}]
        for flat in self._flats:
            flat.grad = torch.zeros_like(flat)
        self._base.step()
        for flat, gradient in zip(self._flats, gradients, strict=True):
            flat.grad = gradient
        self._base.param_groups = groups

    def _count(self, kept: Mapping[str, Tensor]) -> None:
        counts = [value for _name, key, value in of_parameters(kept) if key == _STEP]
        for flat in self._flats if counts else ():
            self._base.state[flat][_STEP].copy_(counts[0])

    def _set(self, kept: Mapping[str, Tensor], set_: Callable[[nn.Parameter, Tensor, str], None]) -> None:
        for name, key, value in of_parameters(kept):
            if key != _STEP:
                set_(self._parameters[name], value, key)


class DividedState(_Parts):
    """Stages 1 and 2: every worker has all weights, and steps its part of them."""

    def __init__(self, network: nn.Module, optimizer: Any) -> None:
        super().__init__(network, optimizer.optimizer, optimizer.single_partition_of_fp32_groups)
        self._optimizer = optimizer

    def kept(self) -> dict[str, Tensor]:
        if self._flats[0] in self._base.state:
            self._link()
        return super().kept()

    def _link(self) -> None:
        """DeepSpeed does so after the first group of parameters has stepped, when the others have no state yet."""
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def load(self, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(weights[name])
            safe_set_full_fp32_param(parameter, weights[name])
        if any(of_parameters(kept)):
            self._begin()
            self._link()
            self._set(kept, safe_set_full_optimizer_state)
            self._count(kept)


class DividedWeights(_Parts):
    """Stage 3: every worker has its part of all weights, which are whole only where they are used."""

    def __init__(self, network: nn.Module, optimizer: Any, *, rank: int) -> None:
        super().__init__(network, optimizer.optimizer, optimizer.fp32_partitioned_groups_flat)
        self._optimizer, self._rank = optimizer, rank

    def weights(self) -> dict[str, Tensor]:
        return {name: safe_get_full_fp32_param(parameter) for name, parameter in self._parameters.items()}

    def load(self, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            safe_set_local_fp32_param(parameter, self._part(weights[name], parameter))
        if any(of_parameters(kept)):
            self._begin()
            self._set(
                kept,
                lambda parameter, value, key: safe_set_local_optimizer_state(
                    parameter, self._part(value, parameter), key
                ),
            )
            self._count(kept)
        for group in range(len(self._flats)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(group)  # else the old weights are used

    def _part(self, value: Tensor, parameter: Any) -> Tensor:
        """`safe_set_full_...` would ask for a size that the number of workers divides."""
        size = parameter.ds_tensor.numel()
        part = value.flatten()[self._rank * size : (self._rank + 1) * size]
        return F.pad(part, (0, size - part.numel()))
