"""The common part of the engines: precision, synchronised batch norm, EMA, loss scaling and evaluation."""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from fmfsd.config import RunConfig
from fmfsd.distributed.collectives import Comms
from fmfsd.distributed.sync_batch_norm import convert_batch_norm
from fmfsd.engine.compiled_pass import is_compiled
from fmfsd.engine.ema import WeightEMA
from fmfsd.engine.grad_scaler import GradScaler
from fmfsd.engine.interface import EMA_SUFFIX, EngineState
from fmfsd.engine.precision import AnyModule, PrecisionFormat
from fmfsd.model.network import Network, Outputs

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtype by the number of bytes of a weight."""


class BaseEngine:
    """A network on its device, whose batch statistics are synchronised over all workers unless disabled in the config.

    `ema` is the EMA of its weights and buffers, or None; `grad_scaler` is the loss scaler of fp16, else None.
    """

    def __init__(self, network: Network, config: RunConfig, comms: Comms, device: torch.device) -> None:
        self._precision, self._device, self._comms = PrecisionFormat.from_config(config.train), device, comms
        self.head_names = network.head_names
        bare = self._precision.apply_to(network, device)
        self.ema = WeightEMA(bare, config.train.ema) if config.train.ema is not None else None
        self.grad_scaler = GradScaler() if config.train.precision == "fp16" else None
        self.synchronised = comms.size > 1 and config.model.sync_bn in ("auto", True)
        self.is_compiled = is_compiled(config, device)
        if self.synchronised:
            bare = _synchronise(bare, comms, own=self.is_compiled or device.type == "cpu")
        self.network: nn.Module = bare

    def autocast(self) -> torch.autocast:
        return self._precision.autocast(self._device.type)

    def to_memory_format(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self._precision.memory_format)

    @property
    def evaluated_network(self) -> nn.Module:
        """Return the network that is evaluated: the EMA if there is one."""
        return self.ema.network if self.ema is not None and self.ema.has_average else self.network

    def predict(self, images: Tensor) -> Outputs:
        network = self.evaluated_network
        network.eval()
        try:
            with torch.no_grad(), self.autocast():
                return network(self.to_memory_format(images))
        finally:
            self.network.train()

    def unify_buffers(self) -> None:
        """Broadcast rank 0's buffers and their EMA, as DDP would do before the next training pass."""
        if self._comms.size > 1 and not self.synchronised:
            networks = [self.network] if self.ema is None else [self.network, self.ema.network]
            for buffer in (buffer for network in networks for buffer in network.buffers()):
                self._comms.broadcast_(buffer)

    def weights_checksum(self) -> Tensor:
        return checksum(*self.network.parameters())

    @property
    def loss_scale(self) -> float | None:
        return self.grad_scaler.value if self.grad_scaler is not None else None

    def scale_loss(self, loss: Tensor) -> Tensor:
        return loss * self.grad_scaler.value if self.grad_scaler is not None else loss

    def backward_context(self) -> AbstractContextManager[None]:
        """Return the context for a backward pass, which disables oneDNN for fp16 on CPUs.

        On CPUs with fp16 instructions, oneDNN's fp16 convolutions are nine times as slow as PyTorch's own
        (8.0 against 0.9 s per step of ResNet-8, torch 2.15).
        """
        slow = self.grad_scaler is not None and self._device.type == "cpu"
        return torch.backends.mkldnn.flags(enabled=False) if slow else nullcontext()

    def unscale_gradients(self) -> bool:
        """Unscale the gradients in place; return whether all are finite, so that the optimizer can step."""
        if self.grad_scaler is None:
            return True
        return self.grad_scaler.unscale_(each.grad for each in self.network.parameters() if each.grad is not None)

    def extra_state(self) -> dict[str, Tensor]:
        """Return the EMA and the loss scale, with their keys in `EngineState.optimizer`."""
        return self._ema_state() | (self.grad_scaler.state() if self.grad_scaler is not None else {})

    def load_extra_state(self, state: EngineState) -> None:
        if self.ema is not None:
            self.ema.load(state.ema_weights)
        if self.grad_scaler is not None:
            self.grad_scaler.load(state.optimizer)

    def _ema_state(self) -> dict[str, Tensor]:
        averages = self.ema.state() if self.ema is not None else {}
        return {f"{name}{EMA_SUFFIX}": value for name, value in averages.items()}


def checksum(*tensors: Tensor) -> Tensor:
    """Return a checksum of the tensors' bits and their positions, as a 0-dimensional int64 tensor, modulo 2^64.

    It does not depend on the memory layout; other values, or the same values in another order, change it.
    """
    sums = [_checksum_one(tensor) * (2 * number + 1) for number, tensor in enumerate(tensors)]
    return torch.stack(sums).sum()


def _checksum_one(tensor: Tensor) -> Tensor:
    bits = tensor.detach().contiguous().view(_BITS[tensor.itemsize]).flatten().long()
    return (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum()


def _synchronise(network: AnyModule, comms: Comms, *, own: bool) -> AnyModule:
    """Synchronise batch norm with `own` layers (under torch.compile and on CPUs), or with nn.SyncBatchNorm."""
    if not own:
        return cast("AnyModule", nn.SyncBatchNorm.convert_sync_batchnorm(network))
    convert_batch_norm(network, comms.all_reduce_, comms.size)
    return network
