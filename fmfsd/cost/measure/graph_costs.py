"""Cost per head, read from the autograd graph of one forward pass.

A head needs the parameters that its gradient reaches, and the multiply-adds of the modules that own them. This is what
`fmfsd.model.prune` leaves for the head, but it also works for networks that torch.fx can't trace.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from fmfsd.cost.cost_report import Cost
from fmfsd.model.network import Outputs

ParameterNames = frozenset[str]
"""Names of parameters."""


def find_reachable_parameters(results: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> ParameterNames:
    """Return the names of the `parameters` that `results` depend on."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    queue = [result.grad_fn for result in results]
    visited, reached = set(queue), set[str]()
    while queue:
        node: Any = queue.pop()
        if (leaf := getattr(node, "variable", None)) is not None and id(leaf) in names:
            reached.add(names[id(leaf)])
        new = {below for below, _ in node.next_functions if below is not None} - visited
        visited |= new
        queue += new
    return frozenset(reached)


def find_training_parameters(outputs: Outputs, parameters: Mapping[str, Tensor]) -> list[ParameterNames]:
    """Return the parameters that each head's logits and, where it has one, its feature depend on.

    Only the first `len(outputs.features)` heads, the shallowest, have a feature.
    """
    results = [[logits] for logits in outputs.logits]
    for each, feature in zip(results, outputs.features, strict=False):
        each.append(feature)
    return [find_reachable_parameters(each, parameters) for each in results]


def select_exclusive_parameters(needed: Sequence[ParameterNames]) -> list[ParameterNames]:
    """Return for each head the parameters that no other head needs."""
    return [
        names.difference(*(others for other, others in enumerate(needed) if other != number))
        for number, names in enumerate(needed)
    ]


class ModuleCounts:
    """Attributes a running counter to the modules that execute, by name; a module's count excludes its submodules."""

    def __init__(self, network: nn.Module, count: Callable[[], int]) -> None:
        self.by_module, self._count, self._last_count, self._stack = Counter[str](), count, 0, [""]
        for name, module in network.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave)

    def _enter(self, name: str, *_call: object) -> None:
        self._attribute()
        self._stack.append(name)

    def _leave(self, *_call: object) -> None:
        self._attribute()
        self._stack.pop()

    def _attribute(self) -> None:
        before, self._last_count = self._last_count, self._count()
        self.by_module[self._stack[-1]] += self._last_count - before


class CostBreakdown:
    """Costs of a network's parts, from the `sizes` of its parameters and the `macs` of its modules, both by name.

    `trained`: the parameters that each head needs in training, shallow to deep. `needed`: those that its logits need.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        macs: Mapping[str, int],
        trained: Sequence[ParameterNames],
        needed: Sequence[ParameterNames],
    ) -> None:
        self._sizes, self._macs, self._needed = sizes, _macs_by_owner(macs, sizes), needed
        trunk = frozenset(name for name in sizes if name.startswith("backbone."))
        self.total, self.trunk = self._cost(frozenset(sizes)), self._cost(trunk)
        self.plain = self._cost(trunk | {name for name in sizes if name.startswith("deepest_head.")})
        self.own = [self._cost(names - trunk) for names in select_exclusive_parameters(trained)]
        """Cost of each head's layers that neither another head nor the trunk uses."""

    @property
    def shared(self) -> Cost:
        """Cost of the layers outside the trunk that more than one head uses."""
        parts = (self.trunk, *self.own)
        parameters = self.total.parameters - sum(part.parameters for part in parts)
        return Cost(parameters, self.total.macs - sum(part.macs for part in parts))

    def cost_of_heads(self, heads: Sequence[int]) -> Cost:
        """Return the cost of a network that computes only these heads."""
        return self._cost(frozenset().union(*(self._needed[head] for head in heads)))

    def _cost(self, names: ParameterNames) -> Cost:
        used = _modules_with(names)
        macs = sum(count for module, count in self._macs.items() if module in used)
        return Cost(sum(self._sizes[name] for name in names), macs)


def _macs_by_owner(macs: Mapping[str, int], parameters: Iterable[str]) -> dict[str, int]:
    """Return multiply-adds by module with parameters; those of other modules count for the nearest such parent."""
    owners, counts = _modules_with(parameters), Counter[str]()
    for name, count in macs.items():
        counts[next(each for each in (name, *_parents(name)) if each in owners)] += count
    return dict(counts)


def _modules_with(parameters: Iterable[str]) -> set[str]:
    return {module for parameter in parameters for module in _parents(parameter)}


def _parents(name: str) -> Iterator[str]:
    """Yield the names of the parent modules, the nearest first; last the network's, which is empty."""
    while name:
        name = name.rpartition(".")[0]
        yield name
