"""Weights and optimizer state under ZeRO: full tensors are gathered from the partitions, and restored to them.

Every worker must make every call. A state depends neither on the number of workers nor on the ZeRO stage. In addition
to DeepSpeed's public `safe_get_...` and `safe_set_...`, some attributes of DeepSpeed 0.19.8 are used, each with its
reason.
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

from fmfsd.engine.optimizer_state import iterate_parameter_state

_STEP = "step"
"""AdamW's step count, one per flat parameter; all other state has one value per weight."""


class ZeroState(Protocol):
    """Access to the full weights and optimizer state at one ZeRO stage."""

    def gather_weights(self) -> dict[str, Tensor]:
        """Return the full tensor of each parameter."""
        ...

    def gather_optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer state of the full parameters, as in `optimizer_state`; empty before the first step."""
        ...

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None: ...


class _Partitioned:
    """`flats` are this worker's flat partitions of all parameters, which the optimizer `base` steps."""

    def __init__(self, network: nn.Module, base: torch.optim.Optimizer, flats: Sequence[Tensor]) -> None:
        self._parameters = dict(network.named_parameters())
        self._base, self._flats = base, flats

    def gather_optimizer_state(self) -> dict[str, Tensor]:
        state = self._base.state.get(self._flats[0], {})
        values = {
            f"{name}.{key}": safe_get_full_optimizer_state(parameter, key)
            for name, parameter in self._parameters.items()
            for key in state
            if key != _STEP
        }
        counts = {f"{name}.{_STEP}": state[_STEP].clone() for name in self._parameters if _STEP in state}
        return values | counts

    def _init_state(self) -> None:
        """Create the optimizer state that is to be set, by a step with zero gradients and learning rate 0."""
        groups, gradients = self._base.param_groups, [flat.grad for flat in self._flats]
        self._base.param_groups = [{**groups[0], "params": list(self._flats), "lr": 0.0}]
        for flat in self._flats:
            flat.grad = torch.zeros_like(flat)
        self._base.step()
        for flat, gradient in zip(self._flats, gradients, strict=True):
            flat.grad = gradient
        self._base.param_groups = groups

    def _set_step_count(self, state: Mapping[str, Tensor]) -> None:
        counts = [value for _name, key, value in iterate_parameter_state(state) if key == _STEP]
        for flat in self._flats if counts else ():
            self._base.state[flat][_STEP].copy_(counts[0])

    def _set(self, state: Mapping[str, Tensor], set_: Callable[[nn.Parameter, Tensor, str], None]) -> None:
        for name, key, value in iterate_parameter_state(state):
            if key != _STEP:
                set_(self._parameters[name], value, key)


class PartitionedOptimizerState(_Partitioned):
    """ZeRO stages 1 and 2: every worker has all weights and steps its partition."""

    def __init__(self, network: nn.Module, optimizer: Any) -> None:
        super().__init__(network, optimizer.optimizer, optimizer.single_partition_of_fp32_groups)
        self._optimizer = optimizer

    def gather_optimizer_state(self) -> dict[str, Tensor]:
        if self._flats[0] in self._base.state:
            self._link()
        return super().gather_optimizer_state()

    def _link(self) -> None:
        """Link the optimizer state to the parameters again: DeepSpeed links it after the first group's step, too early
        for the other groups."""
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def gather_weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(weights[name])
            safe_set_full_fp32_param(parameter, weights[name])
        if any(iterate_parameter_state(state)):
            self._init_state()
            self._link()
            self._set(state, safe_set_full_optimizer_state)
            self._set_step_count(state)


class PartitionedWeights(_Partitioned):
    """ZeRO stage 3: every worker has its partition of the weights; full weights exist only while they are used."""

    def __init__(self, network: nn.Module, optimizer: Any, *, rank: int) -> None:
        super().__init__(network, optimizer.optimizer, optimizer.fp32_partitioned_groups_flat)
        self._optimizer, self._rank = optimizer, rank

    def gather_weights(self) -> dict[str, Tensor]:
        return {name: safe_get_full_fp32_param(parameter) for name, parameter in self._parameters.items()}

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            safe_set_local_fp32_param(parameter, self._partition(weights[name], parameter))
        if any(iterate_parameter_state(state)):
            self._init_state()
            self._set(
                state,
                lambda parameter, value, key: safe_set_local_optimizer_state(
                    parameter, self._partition(value, parameter), key
                ),
            )
            self._set_step_count(state)
        for group in range(len(self._flats)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(group)  # else the old weights stay in use

    def _partition(self, value: Tensor, parameter: Any) -> Tensor:
        """Return this worker's padded partition of `value`; `safe_set_full_...` needs a size divisible by the world."""
        size = parameter.ds_tensor.numel()
        part = value.flatten()[self._rank * size : (self._rank + 1) * size]
        return F.pad(part, (0, size - part.numel()))
