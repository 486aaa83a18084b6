"""What the search chooses from: for each layer a scheme and an emphasis, completed to a network that meets the goal.

An action names a pruning regularity with its block size, or lets all of them compete, and how much the layer's errors
count. Rates are not actions: given the actions, the solver (:mod:`blockpunch.mapping.solver`) gives every layer the
rate at which the network costs least within the time of the exact plan for the goal, by the solver's count. So no
evaluation is spent on networks that are too slow, and the actions of no preference at all are the exact mapping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from blockpunch.mapping.choices import Costs, Option
from blockpunch.mapping.coupling import Alive, Chains
from blockpunch.mapping.exact import Exact
from blockpunch.mapping.goal import Goal
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.mapping.table import LatencyTable
from blockpunch.schemes import Scheme

EMPHASES = (1 / 3, 1.0, 3.0)
"""Factors on the cost of a layer's errors."""
ANY = 0
"""The action that lets all schemes of a layer compete."""
NEUTRAL = EMPHASES.index(1.0)

Actions = Sequence[tuple[int, int]]
"""Of each open item: number of the scheme (in :attr:`Space.schemes`, from 1; or :data:`ANY`) and of the emphasis."""
Candidate = tuple[int, ...]
"""Of each item: number of its option."""


@dataclass(frozen=True)
class Space:
    """The actions of a network's items.

    Args:
        items: of the network.
        offered: what can be chosen for each; the first option is dense.
        budget: seconds that the items may take together, by the solver; their fastest options must fit.
        chains: which items save each other time.

    Attributes:
        schemes: all that are offered anywhere, in the order of their names.
        open: numbers of the items that have a choice.
    """

    items: Sequence[Item]
    offered: Sequence[Sequence[Option]]
    budget: float
    chains: Chains
    schemes: list[Scheme] = field(init=False)
    open: list[int] = field(init=False)

    def __post_init__(self) -> None:
        found = {str(option.scheme): option.scheme for options in self.offered for option in options[1:]}
        object.__setattr__(self, "schemes", [found[name] for name in sorted(found)])
        object.__setattr__(self, "open", [at for at, options in enumerate(self.offered) if len(options) > 1])

    @classmethod
    def of(cls, network: Network, table: LatencyTable, costs: Costs, goal: Goal, alive: Alive) -> Space:
        """The space of a network, with the options of the exact mapping, and the budget of its plan for the goal.

        Raises:
            DataError: the table does not know the network, or no layer has costs.
            PlanError: the goal cannot be reached; names the fastest point.
        """
        exact = Exact.solve(network, table, costs, alive)
        point = exact.reached(goal)
        return cls(network.items, exact.offered, float(exact.best.seconds[point]), exact.chains)

    @property
    def digest(self) -> str:
        """Tells what is offered, and the budget, from anything else."""
        rows = [[(str(o.scheme), o.rate, o.seconds, o.cost) for o in choices] for choices in self.offered]
        return hashlib.sha256(repr((rows, self.budget)).encode()).hexdigest()[:16]

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """Whether an open item can take a scheme: ``[open items, 1 + schemes]``."""
        rows = []
        for at in self.open:
            known = {option.scheme for option in self.offered[at][1:]}
            rows.append([True, *(scheme in known for scheme in self.schemes)])
        return np.array(rows, np.bool_)

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """What tells the open items apart, about 0 to 1: ``[open items, 6]``.

        The place in the network, the share of its time and of its weights, the kernel, the largest saving there is, and
        what it costs.
        """
        total = sum(options[0].seconds for options in self.offered)
        weights = sum(item.weights for item in self.items)
        most = max(option.cost for options in self.offered for option in options) or 1.0
        rows = []
        for number, at in enumerate(self.open):
            item, options = self.items[at], self.offered[at]
            shape = item.layers[0].shape
            fastest = min(options, key=lambda option: option.seconds)
            rows.append([number / len(self.open), (options[0].seconds / total) ** 0.5, (item.weights / weights) ** 0.5,
                         float(np.prod(shape[2:])) / 9, 1 - fastest.seconds / options[0].seconds,
                         (min(option.cost for option in options if option.seconds <= 1.5 * fastest.seconds)
                          / most) ** 0.5])
        return np.array(rows, np.float32)

    @property
    def neutral(self) -> Actions:
        """No preference anywhere: the exact mapping."""
        return [(ANY, NEUTRAL)] * len(self.open)

    def complete(self, actions: Actions) -> Candidate:
        """The options of all items that cost least within the budget, by the emphases, under the chosen schemes.

        Where the chosen schemes cannot be fast enough, all schemes compete on the items that lose most by theirs.
        """
        within = [list(range(len(options))) for options in self.offered]
        factors = [1.0] * len(self.offered)
        for at, (scheme, emphasis) in zip(self.open, actions, strict=True):
            factors[at] = EMPHASES[emphasis]
            if scheme != ANY:
                wanted = self.schemes[scheme - 1]
                within[at] = [n for n in within[at] if n == 0 or self.offered[at][n].scheme == wanted]
        self._release(within)
        best = self.chains.frontier(self.offered, within, factors)
        chosen = self.chains.chosen(best, best.within(self.budget) or 0)
        return tuple(numbers[n] for numbers, n in zip(within, chosen, strict=True))

    @property
    def price(self) -> float:
        """Cost of a second at the exact mapping."""
        best = self.chains.frontier(self.offered)
        return best.price(best.within(self.budget) or 0)

    def _release(self, within: list[list[int]]) -> None:
        """Open the items again whose schemes cost most time, until the fastest network fits."""
        fastest = [min(options[n].seconds for n in numbers)
                   for options, numbers in zip(self.offered, within, strict=True)]
        possible = [min(option.seconds for option in options) for options in self.offered]
        by_gain = sorted(self.open, key=lambda at: possible[at] - fastest[at])
        for at in by_gain:
            if sum(fastest) <= self.budget:
                return
            fastest[at], within[at] = possible[at], list(range(len(self.offered[at])))

    def chosen(self, candidate: Candidate) -> list[Option]:
        """The option of each item."""
        return [options[n] for options, n in zip(self.offered, candidate, strict=True)]

    def cells(self, candidate: Candidate) -> dict[str, Cell]:
        """Scheme and rate of each pruned layer, by its name."""
        return {layer.name: option.cell for item, option in zip(self.items, self.chosen(candidate), strict=True)
                if option.rate > 1 for layer in item.layers}
