"""What each head of a network needs, read from the graph that one forward pass leaves.

A head needs the parameters that its gradient would reach, and the multiply-adds of the modules that have them: what
`fmfsd.model.prune` keeps for it, and told of networks too that torch.fx can't follow.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from fmfsd.cost.estimate import Cost
from fmfsd.model.network import Outputs

Names = frozenset[str]
"""Of parameters."""


def parameters_behind(results: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> Names:
    """The names of those `parameters` that `results` were computed from."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    waiting = [result.grad_fn for result in results]
    seen, found = set(waiting), set[str]()
    while waiting:
        node: Any = waiting.pop()
        if (leaf := getattr(node, "variable", None)) is not None and id(leaf) in names:
            found.add(names[id(leaf)])
        new = {below for below, _ in node.next_functions if below is not None} - seen
        seen |= new
        waiting += new
    return frozenset(found)


def needed_to_train(outputs: Outputs, parameters: Mapping[str, Tensor]) -> list[Names]:
    """By each head, and by its feature if it has one: the shallowest have."""
    results = [[logits] for logits in outputs.logits]
    for each, feature in zip(results, outputs.features, strict=False):
        each.append(feature)
    return [parameters_behind(each, parameters) for each in results]


def only_of_each(needed: Sequence[Names]) -> list[Names]:
    """Of each, what none of the others needs."""
    return [
        mine.difference(*(others for other, others in enumerate(needed) if other != number))
        for number, mine in enumerate(needed)
    ]


class ModuleShares:
    """Shares out what `count` counts to the modules at work, by name, each without what the modules in it do."""

    def __init__(self, network: nn.Module, count: Callable[[], int]) -> None:
        self.found, self._count, self._counted, self._at_work = Counter[str](), count, 0, [""]
        for name, module in network.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave)

    def _enter(self, name: str, *_call: object) -> None:
        self._share()
        self._at_work.append(name)

    def _leave(self, *_call: object) -> None:
        self._share()
        self._at_work.pop()

    def _share(self) -> None:
        counted, self._counted = self._counted, self._count()
        self.found[self._at_work[-1]] += self._counted - counted


class HeadCosts:
    """Of a network with parameters of these `sizes` and modules of these `macs`, both by name: what its parts cost.

    `trained` has what each head needs in training, shallow to deep, and `needed` what its logits need.
    """

    def __init__(
        self, sizes: Mapping[str, int], macs: Mapping[str, int], trained: Sequence[Names], needed: Sequence[Names]
    ) -> None:
        self._sizes, self._macs, self._needed = sizes, _macs_of_owners(macs, sizes), needed
        trunk = frozenset(name for name in sizes if name.startswith("backbone."))
        self.total, self.trunk = self._of(frozenset(sizes)), self._of(trunk)
        self.plain = self._of(trunk | {name for name in sizes if name.startswith("deepest_head.")})
        self.own = [self._of(names - trunk) for names in only_of_each(trained)]
        """Of each head, what neither another one nor the trunk has."""

    @property
    def shared(self) -> Cost:
        """What more than one head needs beyond the trunk."""
        parts = (self.trunk, *self.own)
        parameters = self.total.parameters - sum(part.parameters for part in parts)
        return Cost(parameters, self.total.macs - sum(part.macs for part in parts))

    def of_heads(self, heads: Sequence[int]) -> Cost:
        """Return the cost of a network that computes these heads and nothing else."""
        return self._of(frozenset().union(*(self._needed[head] for head in heads)))

    def _of(self, names: Names) -> Cost:
        used = _modules_with(names)
        macs = sum(count for module, count in self._macs.items() if module in used)
        return Cost(sum(self._sizes[name] for name in names), macs)


def _macs_of_owners(macs: Mapping[str, int], parameters: Iterable[str]) -> dict[str, int]:
    """By module with parameters; what one without any does is counted for the nearest that it is in."""
    have, counts = _modules_with(parameters), Counter[str]()
    for name, count in macs.items():
        counts[next(each for each in (name, *_above(name)) if each in have)] += count
    return dict(counts)


def _modules_with(parameters: Iterable[str]) -> set[str]:
    return {module for parameter in parameters for module in _above(parameter)}


def _above(name: str) -> Iterator[str]:
    """The names of the modules that it is in, the nearest first, the whole network's, which is empty, last."""
    while name:
        name = name.rpartition(".")[0]
        yield name
