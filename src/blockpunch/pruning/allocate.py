"""One rate for the whole network, spread over its layers so that their costs add up to the least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from blockpunch.errors import PlanError
from blockpunch.plan import Layer, Plan
from blockpunch.pruning.layer_errors import LayerErrors, Progress, layer_errors
from blockpunch.pruning.objectives import images_of
from blockpunch.pruning.torch_prune import module_layers

GRID = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 14.0)
"""Rates at which the costs are looked at; a global rate needs those up to about three times itself."""


def grid(rate: float) -> list[float]:
    """The rates at which layers are looked at for a global ``rate``."""
    return [step for step in GRID if step <= 3 * rate] or [GRID[0]]


def rated(model: nn.Module, plan: Plan, batches: Iterable[Any], rate: float, *, store: str | Path | None = None,
          progress: Progress | None = None) -> Plan:
    """``plan`` with the rates that bring all its pruned layers together to ``rate`` at the least loss.

    What the network's answer feels of each layer at each rate (:func:`layer_errors`) decides (:func:`spread`). Layers
    that one-shot pruning must skip keep theirs.

    Args:
        model: dense; left as it is.
        plan: which layers are pruned, by which schemes; its rates are not used.
        batches: a few hundred unlabelled images in batches; they are held in memory.
        rate: weights before / weights kept, over all pruned layers.
        store: a JSON file for the errors, which an interrupted run goes on from.
        progress: called after each layer with (done, all, name).

    Raises:
        DataError, PlanError: as :func:`layer_errors` and :func:`spread`.
    """
    layers = module_layers(model)
    plan.check(layers)
    images = [images_of(batch) for batch in batches]
    candidates = {name: [(entry.scheme, step) for step in grid(rate)] for name, entry in plan.pruned().items()}
    errors = layer_errors(model, images, candidates, store=store, progress=progress)
    return spread(plan, layers, errors, rate)


def spread(plan: Plan, layers: Sequence[Layer], errors: LayerErrors, rate: float) -> Plan:
    """``plan`` with new rates: all its pruned layers together at ``rate``, each at the same cost per weight removed.

    The cost of a layer over its weights removed is taken as the lower convex hull of the points measured; the hull's
    segments are removed cheapest first, which is the exact optimum of that model. The result is deterministic.

    Args:
        plan: says which layers are pruned, and by which scheme.
        layers: of the model.
        errors: of the scheme of each pruned layer, at several rates.
        rate: weights before / weights kept, over all pruned layers.

    Raises:
        PlanError: no errors for a layer's scheme, or they do not reach far enough for such a rate.
    """
    sizes = {layer.name: layer.weights for layer in layers}
    names = [name for name in plan.pruned() if name not in errors.skipped]
    segments = []
    for name in names:
        table = {r: cost for (scheme, r), cost in errors.costs.get(name, {}).items()
                 if scheme == str(plan.layers[name].scheme)}
        if not table:
            raise PlanError(f"no errors for '{plan.layers[name].scheme}'", where=f"layer '{name}'",
                            fix="compute them with layer_errors()")
        points = sorted([(0.0, 0.0), *((sizes[name] * (1 - 1 / r), cost) for r, cost in table.items())])
        segments += [(slope, index, name, width) for index, (slope, width) in enumerate(_hull(points))]
    left = sum(sizes[name] for name in names) * (1 - 1 / rate)
    removed = dict.fromkeys(names, 0.0)
    for _, _, name, width in sorted(segments):
        part = min(width, left)
        removed[name] += part
        left -= part
    if left > 1:
        raise PlanError(f"a rate of {rate:g} is more than the layers' errors reach",
                        fix="compute errors at higher rates")
    entries = dict(plan.layers)
    for name in names:
        exact = sizes[name] / (sizes[name] - removed[name])
        entries[name] = replace(entries[name], rate=round(max(1.0, exact), 4), source="one-shot",
                                reason=f"equal cost per weight, {rate:g} in all")
    return Plan(entries, plan.model)


def _hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """``(slope, width)`` of the segments of the lower convex hull, from left to right."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        if not hull or point[0] > hull[-1][0]:
            hull.append(point)
    return [(_slope(a, b), b[0] - a[0]) for a, b in pairwise(hull)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else float("inf")
