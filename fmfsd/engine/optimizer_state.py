"""State of a torch optimizer for each parameter (momentum, running means, steps), keyed by `<parameter>.<key>`."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fmfsd.engine.interface import EMA_SUFFIX, LOSS_SCALE_PREFIX


def get_optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state without changing it.

    torch's `get_state_dict` steps an optimizer that has no state yet, which would put weight decay into the momentum
    of a run that is saved before its first step.
    """
    return {
        f"{name}.{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_state(state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    """Load `state` into the optimizer, in the memory layout of each parameter.

    A checkpoint's tensors are contiguous, but fused optimizers iterate over a parameter and its state in memory order:
    with other strides they would silently pair the wrong elements.
    """
    parameters = dict(network.named_parameters())
    for name, key, value in iterate_parameter_state(state):
        parameter = parameters[name]
        like = parameter if value.shape == parameter.shape else value.to(parameter.device)
        optimizer.state[parameter][key] = torch.empty_like(like.detach()).copy_(value)


def iterate_parameter_state(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield parameter name, key and value, without the EMA and the loss scale."""
    for full_name, value in state.items():
        if not full_name.endswith(EMA_SUFFIX) and not full_name.startswith(LOSS_SCALE_PREFIX):
            name, _, key = full_name.rpartition(".")
            yield name, key, value
