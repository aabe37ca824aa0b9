"""Named ranges in the profiler's record, put around a worker's parts from outside."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

from torch import nn
from torch.profiler import record_function
from torch.utils.hooks import RemovableHandle

from fmfsd.run.profile_record import BACKWARD, BRANCHES, COMMUNICATION, FORWARD, FUSION, INPUT, LOSS, OPTIMIZER, TRUNK
from fmfsd.training.timers import Stopwatch

T = TypeVar("T")

STEP = "step"
ENGINE = {"terms": LOSS, "backward": BACKWARD, "step": OPTIMIZER}
LOSSES = {"total": LOSS}
CALLS = dict.fromkeys(("sum_", "mean_", "spread_", "any", "share", "gather"), COMMUNICATION)
"""Methods of an engine, a loss and comms, and the range of each. What is inside another range is that one's."""

ROLES = {
    TRUNK: ("backbone", "deepest_head"),
    BRANCHES: ("alignments", "branches", "heads", "projections", "fused_branch", "fused_head", "side_heads"),
    FUSION: ("gates", "fusion", "deep_fusion"),
}
"""A network's children by what they are for; `fusion` is all that makes masks and puts them to use."""


def ranged(target: T, ranges: Mapping[str, str]) -> T:
    """`target`, whose methods of these names are ranges."""
    return cast(T, _Ranged(target, ranges))


class _Ranged:
    def __init__(self, target: object, ranges: Mapping[str, str]) -> None:
        self._target, self._ranges = target, ranges

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return partial(_within, self._ranges[name], found) if name in self._ranges else found


def _within(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with record_function(name):
        return call(*args, **kwargs)


class RangedStopwatch(Stopwatch):
    """Has every step of a loop inside of what `around` gives, and waiting for data as a range."""

    def __init__(self, around: Callable[[], Any]) -> None:
        super().__init__()
        self._around, self.waited_in_all = around, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        before = self.waited
        with record_function(INPUT), super().waiting():
            yield
        self.waited_in_all += self.waited - before

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        with self._around(), super().step(images):
            yield


@contextmanager
def ranges_of(network: nn.Module) -> Iterator[None]:
    """While it is open, the forward passes of the network and of its children are ranges."""
    children = dict(network.named_children())
    handles = [*_hooks(network, FORWARD)]
    for role, names in ROLES.items():
        for child in (children[name] for name in names if name in children):
            for called in child if isinstance(child, nn.ModuleList) else [child]:
                handles += _hooks(called, f"{FORWARD}/{role}")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(module: nn.Module, name: str) -> tuple[RemovableHandle, RemovableHandle]:
    under_way = list[record_function]()

    def enter(*_call: object) -> None:
        under_way.append(record_function(name))
        under_way[-1].__enter__()

    def leave(*_call: object) -> None:
        under_way.pop().__exit__(None, None, None)

    return module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)
