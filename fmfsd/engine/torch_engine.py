"""The engine of plain PyTorch: one worker, or several by DistributedDataParallel."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fmfsd.comms import Comms
from fmfsd.config import TrainConfig
from fmfsd.engine.average import WeightAverage
from fmfsd.engine.base import AVERAGE, EngineState
from fmfsd.engine.form import Form
from fmfsd.engine.sync_bn import synchronise_batch_norm
from fmfsd.model.network import Network, Outputs
from fmfsd.optim import build_optimizer

_WARM_UP_PASSES = 2
_BITS = {4: torch.int32, 8: torch.int64}
"""The integers that have as many bytes as a weight."""


class TorchEngine:
    """Holds the network, its optimizer and, with several workers, the wrapper that averages gradients."""

    def __init__(self, network: Network, config: TrainConfig, comms: Comms, device: torch.device) -> None:
        form = Form.of(config.train)
        self.head_names = network.head_names
        self._layout, self._autocast = form.layout, form.autocast(device.type)
        self._clip_norm = config.optim.clip_norm
        self._device, self._comms = device, comms
        synchronised = comms.size > 1 and config.model.sync_bn in ("auto", True)
        bare = form.given_to(network, device)
        self._average = WeightAverage(bare, config.train.ema) if config.train.ema is not None else None
        self.network: nn.Module = _synchronised(bare, comms, device) if synchronised else bare
        self.optimizer = build_optimizer(self.network, config.optim)
        self._module = _distributed(self.network, device, buffers=not synchronised) if comms.size > 1 else self.network
        self._buffers_differ = comms.size > 1 and not synchronised

    def forward(self, images: Tensor) -> Outputs:
        with self._autocast:
            return self._module(images.contiguous(memory_format=self._layout))

    def predict(self, images: Tensor) -> Outputs:
        network = self._evaluated
        network.eval()
        try:
            with torch.no_grad(), self._autocast:
                return network(images.contiguous(memory_format=self._layout))
        finally:
            self.network.train()

    @property
    def _evaluated(self) -> nn.Module:
        return self._average.network if self._average is not None and self._average.begun else self.network

    def unify_buffers(self) -> None:
        """Rank 0's become everyone's, as DDP would do before the next training pass; their averages too."""
        if self._buffers_differ:
            networks = [self.network] if self._average is None else [self.network, self._average.network]
            for buffer in (buffer for network in networks for buffer in network.buffers()):
                self._comms.spread_(buffer)

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        return (
            self._module.no_sync() if isinstance(self._module, DistributedDataParallel) and not last else nullcontext()
        )

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def gradients(self) -> dict[str, Tensor]:
        named = self.network.named_parameters()
        return {name: parameter.grad for name, parameter in named if parameter.grad is not None}

    def step(self, learning_rate: float) -> None:
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._average is not None:
            self._average.update(self.network)

    def warm_up(self, forward_and_backward: Callable[[], None]) -> None:
        """Passes whose effect is undone, so that DDP's buckets have their final form before the first step.

        DDP rebuilds its buckets after the first backward pass. From three workers on that changes the order of a sum,
        so a run that was resumed would differ in the last bits from one that was not.
        """
        if not isinstance(self._module, DistributedDataParallel):
            return
        before = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            for _ in range(_WARM_UP_PASSES):
                forward_and_backward()
                self.optimizer.zero_grad()
        for name, buffer in self.network.named_buffers():
            buffer.copy_(before[name])

    def weights_sum(self) -> Tensor:
        bits = [parameter.detach().view(_BITS[parameter.itemsize]).sum() for parameter in self.network.parameters()]
        return torch.stack(bits).sum()

    def state(self) -> EngineState:
        """As it is: torch's `get_state_dict` would step an optimizer that has not stepped yet, which leaves weight
        decay in the momentum of a run that is saved before its first step."""
        optimizer = {
            f"{name}.{key}": value
            for name, parameter in self.network.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        averages = self._average.state() if self._average is not None else {}
        return EngineState(
            self.network.state_dict(), optimizer | {f"{name}{AVERAGE}": value for name, value in averages.items()}
        )

    def load(self, state: EngineState) -> None:
        """Layouts are put back too: a checkpoint's tensors are contiguous, and the fused optimizers walk a parameter
        and its state side by side in memory; other strides would pair the wrong elements without a word."""
        self.network.load_state_dict(state.model)
        if self._average is not None:
            self._average.load(state.averages)
        parameters = dict(self.network.named_parameters())
        for full_name, value in state.optimizer.items():
            name, _, key = full_name.rpartition(".")
            if f".{key}" == AVERAGE:
                continue
            parameter = parameters[name]
            like = parameter if value.shape == parameter.shape else value
            self.optimizer.state[parameter][key] = torch.empty_like(like.detach()).copy_(value)


def _synchronised(network: nn.Module, comms: Comms, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    synchronise_batch_norm(network, comms.sum_, comms.size)
    return network


def _distributed(network: nn.Module, device: torch.device, *, buffers: bool) -> DistributedDataParallel:
    """DDP; `buffers`: rank 0's batch statistics are everyone's, as they are not synchronised otherwise."""
    devices = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = buffers  # the argument is deprecated in torch 2.15, its successor unknown to 2.14
    return wrapped
