"""Groups of weights across a whole network: how large they are, and which of them a rate for all layers together keeps.

Needs numpy alone; everything is computed in float64 on the host, so that the same weights give the same groups on every
machine that takes part in a training run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blockpunch.errors import PlanError, SelectorError
from blockpunch.plan import Layer, Plan
from blockpunch.schemes import Scheme
from blockpunch.schemes.base import mean_squares

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerGroups:
    """The groups of one layer's weight.

    Args:
        layer: whose weight it is.
        scheme: decides the groups.
        cost: of one weight, as a share of the whole network's cost.
        reference: mean square of the weight at the start; sizes of groups are relative to it.
    """

    layer: Layer
    scheme: Scheme
    cost: float
    reference: float

    def sizes(self, weight: Array) -> Floats:
        """Of each weight, the mean square of its group relative to the layer's at the start; of two groups the lesser.

        A weight lives when all its groups do, so the lesser one decides.
        """
        return np.asarray(np.min(self._expanded(weight), axis=0))

    def coefficients(self, weight: Array, epsilon: float) -> Floats:
        """Of each weight, the factor ``cost * alpha_g`` of its square in the penalty.

        ``alpha_g = 1 / (mean square of the group + epsilon * reference)``: the mean in place of the sum is what makes
        groups of any size, and so layers of any regularity, equally dear for each of their weights. Where a weight has
        two groups it is charged half of each.
        """
        alphas = [1 / (size + epsilon) for size in self._expanded(weight)]
        return np.asarray(np.mean(alphas, axis=0) * (self.cost / self.reference))

    def _expanded(self, weight: Array) -> list[Floats]:
        view = np.asarray(weight, dtype=np.float64)
        groupings = self.scheme.penalty_groupings(view, conv_groups=self.layer.conv_groups)
        return [(mean_squares(view, labels) / self.reference)[labels] for labels in groupings]


def cost_shares(layers: Sequence[Layer], cost: Mapping[str, float] | None) -> dict[str, float]:
    """Layer name -> cost of one of its weights, so that all weights together cost 1.

    ``cost`` is what each dense layer costs in any unit (milliseconds, MACs); None: every weight costs the same.

    Raises:
        SelectorError: ``cost`` names a layer that the model lacks, or leaves one out.
        PlanError: a cost that is not a number above 0.
    """
    wanted = {layer.name: float(layer.weights) for layer in layers} if cost is None else dict(cost)
    names = {layer.name for layer in layers}
    if wanted.keys() != names:
        odd = sorted(wanted.keys() ^ names)
        raise SelectorError(f"the costs do not fit the model's layers: '{odd[0]}' is only in one of them",
                            fix="give a cost for each prunable layer, and for no other")
    free = [name for name, value in wanted.items() if not (np.isfinite(value) and value > 0)]
    if free:
        raise PlanError(f"the cost of layer '{free[0]}' is {wanted[free[0]]}, not a number above 0")
    total = sum(wanted.values())
    return {layer.name: wanted[layer.name] / total / layer.weights for layer in layers}


def check_target(plan: Plan, layers: Sequence[Layer], shares: Mapping[str, float], target: float,
                 most: float) -> None:
    """Nothing where the whole network can reach the rate ``target`` with no layer above the rate ``most``.

    Raises:
        PlanError: it cannot; says how near it comes and which layers hold it back.
    """
    held = {layer.name: layer.weights * shares[layer.name] * (1 / most if plan.layers[layer.name].scheme.prunes else 1)
            for layer in layers}
    reachable = 1 / sum(held.values())
    if target > reachable:
        worst = sorted(held, key=lambda name: -held[name])[:3]
        named = ", ".join(f"'{name}' ({plan.layers[name].scheme}) keeps {held[name]:.1%} of the cost" for name in worst)
        raise PlanError(f"a rate of {target:g} is out of reach: at most {reachable:.2f} is, as {named}",
                        fix="prune more layers, ask for less, or raise max_rate")


def keep_counts(groups: Sequence[LayerGroups], sizes: Sequence[Floats], share: float, most: float) -> list[int]:
    """Weights to keep in each layer so that all kept weights cost ``share``: one threshold on all groups' sizes.

    Args:
        groups: of the layers that may lose weights.
        sizes: of each layer's weights, from :meth:`LayerGroups.sizes`.
        share: of the network's cost, for these layers together.
        most: largest rate of a single layer.
    """
    ordered = [np.sort(size, axis=None) for size in sizes]
    floors = [max(1, round(len(size) / most)) for size in ordered]

    def kept(threshold: float) -> list[int]:
        return [max(floor, len(size) - int(np.searchsorted(size, threshold, "right")))
                for floor, size in zip(floors, ordered, strict=True)]

    def cost(counts: list[int]) -> float:
        return sum(group.cost * count for group, count in zip(groups, counts, strict=True))

    low, high = 0.0, max(float(size[-1]) for size in ordered)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(kept(middle)) > share else (low, middle)
    return min((kept(low), kept(high)), key=lambda counts: abs(cost(counts) - share))
