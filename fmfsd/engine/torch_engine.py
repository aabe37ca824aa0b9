"""The PyTorch engine: one worker, or several with DistributedDataParallel."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from fmfsd.config import RunConfig
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.base_engine import BaseEngine
from fmfsd.engine.compiled_pass import TrainingPass, compile_module
from fmfsd.engine.interface import EngineState
from fmfsd.engine.optimizer_state import get_optimizer_state, load_optimizer_state
from fmfsd.losses import LossTerms, SelfDistillLoss
from fmfsd.model.network import Network
from fmfsd.optim import build_optimizer

_WARM_UP_PASSES = 2


class TorchEngine(BaseEngine):
    """Holds the network, its optimizer and, with several workers, the DDP wrapper."""

    def __init__(
        self, network: Network, loss: SelfDistillLoss, config: RunConfig, comms: Comms, device: torch.device
    ) -> None:
        super().__init__(network, config, comms, device)
        self._clip_norm = config.optim.clip_norm
        self.optimizer = build_optimizer(self.network, config.optim)
        module: nn.Module = TrainingPass(self.network, loss, self.autocast)
        if self.is_compiled:
            network.recomputes = False  # the compiler decides what to recompute
            module = compile_module(module, config.train)
        buffers = not self.synchronised
        self._module = _wrap_ddp(module, comms, device, buffers=buffers) if comms.size > 1 else module

    def compute_terms(self, images: Tensor, labels: Tensor) -> LossTerms:
        terms: LossTerms = self._module(self.to_memory_format(images), labels)
        return terms

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        return (
            self._module.no_sync() if isinstance(self._module, DistributedDataParallel) and not last else nullcontext()
        )

    def backward(self, loss: Tensor) -> None:
        with self.backward_context():
            self.scale_loss(loss).backward()

    def gradients(self) -> dict[str, Tensor]:
        named, scale = self.network.named_parameters(), self.loss_scale or 1.0
        return {name: parameter.grad / scale for name, parameter in named if parameter.grad is not None}

    def step(self, learning_rate: float) -> None:
        if self.unscale_gradients():
            self._step(learning_rate)
        self.optimizer.zero_grad()

    def _step(self, learning_rate: float) -> None:
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network)

    def warm_up(self, forward_and_backward: Callable[[], None]) -> None:
        """Run passes without side effects, so that compilation and DDP's bucket rebuilding precede the first step.

        DDP rebuilds its buckets after the first backward pass. With three or more workers that changes the order of a
        sum, so a resumed run would differ in the last bits from an uninterrupted one.
        """
        if not self.is_compiled and not isinstance(self._module, DistributedDataParallel):
            return
        before = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            for _ in range(_WARM_UP_PASSES):
                forward_and_backward()
                self.optimizer.zero_grad()
        for name, buffer in self.network.named_buffers():
            buffer.copy_(before[name])

    def state(self) -> EngineState:
        return EngineState(
            self.network.state_dict(), get_optimizer_state(self.optimizer, self.network) | self.extra_state()
        )

    def load(self, state: EngineState) -> None:
        self.network.load_state_dict(state.model)
        self.load_extra_state(state)
        load_optimizer_state(state.optimizer, self.optimizer, self.network)


def _wrap_ddp(network: nn.Module, comms: Comms, device: torch.device, *, buffers: bool) -> DistributedDataParallel:
    """Wrap `network` in DDP; `buffers`: broadcast rank 0's batch statistics, needed without synchronised batch norm."""
    devices = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = buffers  # the argument is deprecated in torch 2.15, its successor unknown to 2.14
    if comms.uses_shared_memory:
        wrapped.register_comm_hook(comms, _all_reduce_hook)
    return wrapped


def _all_reduce_hook(comms: Comms, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
    """Average the bucket's gradients over all workers, synchronously."""
    future = Future[Tensor]()
    future.set_result(comms.all_reduce_mean_(bucket.buffer()))
    return future
