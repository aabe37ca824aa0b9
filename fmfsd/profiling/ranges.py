"""Named profiler ranges around the parts of a worker, added from outside."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

from torch import nn
from torch.profiler import record_function
from torch.utils.hooks import RemovableHandle

from fmfsd.distributed.collectives import Comms
from fmfsd.engine.interface import Engine
from fmfsd.losses import SelfDistillLoss
from fmfsd.run.profile_record import BACKWARD, BRANCHES, COMMUNICATION, FORWARD, FUSION, INPUT, LOSS, OPTIMIZER, TRUNK
from fmfsd.training.timers import StepTimer

T = TypeVar("T")

STEP = "step"
ENGINE_RANGES = {
    Engine.compute_terms.__name__: LOSS,
    Engine.backward.__name__: BACKWARD,
    Engine.step.__name__: OPTIMIZER,
}
LOSS_RANGES = {SelfDistillLoss.total.__name__: LOSS}
_COLLECTIVES = (
    Comms.all_reduce_,
    Comms.all_reduce_mean_,
    Comms.broadcast_,
    Comms.any,
    Comms.broadcast_object,
    Comms.all_gather_object,
)
COLLECTIVE_RANGES = {collective.__name__: COMMUNICATION for collective in _COLLECTIVES}
"""Methods of an engine, a loss and collectives, and the range of each. A nested range counts only for itself."""

ROLES = {
    TRUNK: ("backbone", "deepest_head"),
    BRANCHES: ("alignments", "branches", "heads", "projections", "fused_branch", "fused_head", "side_heads"),
    FUSION: ("gates", "fusion", "deep_fusion"),
}
"""A network's children by role; `fusion` is everything that computes and applies masks."""


def add_ranges(target: T, ranges: Mapping[str, str]) -> T:
    """Return a proxy of `target` that runs the methods named in `ranges` in profiler ranges."""
    return cast(T, _Ranged(target, ranges))


class _Ranged:
    def __init__(self, target: object, ranges: Mapping[str, str]) -> None:
        self._target, self._ranges = target, ranges

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return partial(_call_in_range, self._ranges[name], value) if name in self._ranges else value


def _call_in_range(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with record_function(name):
        return call(*args, **kwargs)


class RangedStepTimer(StepTimer):
    """Runs each step of a loop in the context that `around` returns, and waits for data in a profiler range."""

    def __init__(self, around: Callable[[], Any]) -> None:
        super().__init__()
        self._around, self.total_waited_s = around, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        before = self.waited_s
        with record_function(INPUT), super().waiting():
            yield
        self.total_waited_s += self.waited_s - before

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        with self._around(), super().step(images):
            yield


@contextmanager
def add_module_ranges(network: nn.Module) -> Iterator[None]:
    """Run the forward passes of the network and of its children in profiler ranges."""
    children = dict(network.named_children())
    handles = [*_hooks(network, FORWARD)]
    for role, names in ROLES.items():
        for child in (children[name] for name in names if name in children):
            for module in child if isinstance(child, nn.ModuleList) else [child]:
                handles += _hooks(module, f"{FORWARD}/{role}")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(module: nn.Module, name: str) -> tuple[RemovableHandle, RemovableHandle]:
    open_ranges = list[record_function]()

    def enter(*_call: object) -> None:
        open_ranges.append(record_function(name))
        open_ranges[-1].__enter__()

    def leave(*_call: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)
