"""The DeepSpeed engine: ZeRO partitions optimizer state, gradients and weights over the workers.

Rajbhandari et al. 2020 (arXiv:1910.02054). It trains in fp32, or with our autocast over fp32, like the PyTorch engine.
DeepSpeed's own checkpoints, schedulers and mixed precision are not used.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import compiler
from deepspeed.utils import logger, safe_get_full_grad
from torch import Tensor, nn

from fmfsd.config import RunConfig
from fmfsd.config.deepspeed_config import build_deepspeed_config
from fmfsd.distributed.collectives import Comms
from fmfsd.engine.base_engine import BaseEngine, checksum
from fmfsd.engine.compiled_pass import TrainingPass
from fmfsd.engine.deepspeed_setup import disable_op_builds, filter_log, import_muon
from fmfsd.engine.interface import EngineState
from fmfsd.engine.optimizer_state import get_optimizer_state, load_optimizer_state
from fmfsd.engine.zero_state import PartitionedOptimizerState, PartitionedWeights, ZeroState
from fmfsd.errors import NonFiniteLossError
from fmfsd.losses import LossTerms, SelfDistillLoss
from fmfsd.model.network import Network
from fmfsd.optim import build_optimizer


class DeepSpeedEngine(BaseEngine):
    """Holds the network and the engine and optimizer from `deepspeed.initialize`.

    At stage 3 the network's parameters are empty outside a forward or backward pass, so a copy is evaluated, which
    `unify_buffers` fills.
    """

    def __init__(
        self, network: Network, loss: SelfDistillLoss, config: RunConfig, comms: Comms, device: torch.device
    ) -> None:
        super().__init__(network, config, comms, device)
        self.network.to(memory_format=torch.contiguous_format)  # DeepSpeed broadcasts contiguous weights only
        _init_process_group(device)
        disable_op_builds(deepspeed.ops)
        import_muon(compiler)
        filter_log(logger)
        self._stage = config.engine.zero_stage
        self._copy = copy.deepcopy(self.network) if self._stage == 3 and self.ema is None else None
        self._base = build_optimizer(self.network, config.optim)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=TrainingPass(
                self.network, loss, self.autocast
            ),  # deepspeed disables autocast outside the module only
            optimizer=self._base,
            config=build_deepspeed_config(config, comms.size),
            dist_init_required=False,
        )
        self._zero = self._build_zero()
        self._set_loss_scale()

    def _build_zero(self) -> ZeroState | None:
        """Return the access to ZeRO's partitioned state, or None without ZeRO."""
        if self._stage == 3:
            return PartitionedWeights(self.network, self._optimizer, rank=self._comms.rank)
        return PartitionedOptimizerState(self.network, self._optimizer) if self._stage else None

    def compute_terms(self, images: Tensor, labels: Tensor) -> LossTerms:
        return self._engine(self.to_memory_format(images), labels)

    @property
    def evaluated_network(self) -> nn.Module:
        return self._copy if self._copy is not None else super().evaluated_network

    def unify_buffers(self) -> None:
        super().unify_buffers()
        if self._copy is not None:
            self._copy.load_state_dict(self._model_state())

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        with self.backward_context():
            self._engine.backward(self.scale_loss(loss) if self._zero is None else loss, scale_wrt_gas=False)

    def gradients(self) -> dict[str, Tensor]:
        scale = self.loss_scale or 1.0
        return {name: safe_get_full_grad(parameter) / scale for name, parameter in self.network.named_parameters()}

    def step(self, learning_rate: float) -> None:
        for group in self._base.param_groups:
            group["lr"] = learning_rate
        if self._try_step() and self.ema is not None:
            with self._gathered_weights():
                self.ema.update(self.network)

    def _try_step(self) -> bool:
        """Step unless the gradients are not finite; return whether it did. ZeRO itself unscales and skips steps."""
        if self._zero is None:
            finite = self.unscale_gradients()
            (self._engine.step if finite else self._engine.zero_grad)()
            return finite
        self._engine.step()
        return self._update_scale(finite=not self._optimizer.overflow)

    def _update_scale(self, *, finite: bool) -> bool:
        """Update the loss scale after a ZeRO step, and return `finite`.

        Without a loss scale, raise NonFiniteLossError if the gradients are not finite.
        """
        if self.grad_scaler is not None:
            self.grad_scaler.update(finite=finite)
            self._set_loss_scale()
        elif not finite:
            raise NonFiniteLossError("the gradients are not finite. Earlier checkpoints remain. Lower optim.lr")
        return finite

    def _set_loss_scale(self) -> None:
        if self._zero is not None and self.grad_scaler is not None:
            self._optimizer.override_loss_scale(self.grad_scaler.value)

    @contextmanager
    def _gathered_weights(self) -> Iterator[None]:
        """Gather all weights of the network within the block (ZeRO stage 3)."""
        with deepspeed.zero.GatheredParameters(list(self.network.parameters()), enabled=self._stage == 3):
            yield

    def warm_up(self, forward_and_backward: Callable[[], None]) -> None:
        """Do nothing: DeepSpeed fills its gradient buckets in the same order from the first pass on."""

    def weights_checksum(self) -> Tensor:
        """Return the checksum; at stage 3 of the buffers only, as the workers share one copy of the weights."""
        return checksum(*self.network.buffers()) if self._stage == 3 else super().weights_checksum()

    def state(self) -> EngineState:
        optimizer_state = (
            get_optimizer_state(self._base, self.network) if self._zero is None else self._zero.gather_optimizer_state()
        )
        return EngineState(self._model_state(), optimizer_state | self.extra_state())

    def _model_state(self) -> dict[str, Tensor]:
        state = self.network.state_dict()
        return state if self._zero is None else {**state, **self._zero.gather_weights()}

    def load(self, state: EngineState) -> None:
        for name, buffer in self.network.named_buffers():
            buffer.copy_(state.model[name])
        self.load_extra_state(state)
        self._set_loss_scale()
        if self._zero is None:
            self.network.load_state_dict(state.model)
            load_optimizer_state(state.optimizer, self._base, self.network)
        else:
            self._zero.load(state.model, state.optimizer)


def _init_process_group(device: torch.device) -> None:
    """Set up what DeepSpeed needs even for a single worker: a process group, and LOCAL_RANK to choose the GPU."""
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
