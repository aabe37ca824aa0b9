"""What a torch optimizer keeps of each parameter, by `<parameter>.<key>`: momentum, running means, steps."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fmfsd.engine.interface import AVERAGE, SCALE


def kept_by(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """As it is: torch's `get_state_dict` would step an optimizer that has not stepped yet, which leaves weight decay in
    the momentum of a run that is saved before its first step."""
    return {
        f"{name}.{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def give_back(kept: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    """Layouts are put back too: a checkpoint's tensors are contiguous, and the fused optimizers walk a parameter and
    its state side by side in memory; other strides would pair the wrong elements without a word."""
    parameters = dict(network.named_parameters())
    for name, key, value in of_parameters(kept):
        parameter = parameters[name]
        like = parameter if value.shape == parameter.shape else value.to(parameter.device)
        optimizer.state[parameter][key] = torch.empty_like(like.detach()).copy_(value)


def of_parameters(kept: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Parameter, key and value, without averages and the loss scale."""
    for full_name, value in kept.items():
        if not full_name.endswith(AVERAGE) and not full_name.startswith(SCALE):
            name, _, key = full_name.rpartition(".")
            yield name, key, value
