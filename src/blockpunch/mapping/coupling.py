"""What filters and channels that go from some layers altogether do to the layers around them.

Where a layer loses filters, the layers behind it lose input channels, and where it loses channels, the layers before it
need not compute them (:mod:`blockpunch.graph.passes.shrink`). The table knows what a cell does to its own layer; a
neighbour that has become smaller runs in proportion to its filters, and as at the rate that leaves each as much work.

Every scheme can do that, not only those that are meant to: of a layer with few filters, blocks and single weights at a
high rate leave some filters and channels empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from blockpunch.graph.ir import Graph
from blockpunch.graph.passes.shrink import shrink
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.mapping.table import LatencyTable, Prediction
from blockpunch.schemes import Scheme

_SMALLER = Scheme("channel")
"""What an unpruned layer that has become smaller is like."""


@dataclass(frozen=True)
class Left:
    """The parts of a layer's own work and filters that its neighbours leave it; 1 where they take nothing."""

    work: float = 1.0
    filters: float = 1.0


def what_is_left(network: Network, cells: Mapping[str, Cell]) -> dict[str, Left]:
    """Step -> what its neighbours leave it.

    Which weights go is decided by their magnitudes; other criteria take other ones, but about as many filters.
    """
    given = {step: cell for step, cell in cells.items() if cell[1] > 1}
    if not given:
        return {item.step: Left() for item in network.items}
    pruned = network.pruned(given)
    small = shrink(pruned)
    before, after = _filters(pruned), _filters(small)
    found = {}
    for item in network.items:
        names = [layer.name for layer in item.layers]
        filters = sum(after.get(name, 0) for name in names) / sum(before[name] for name in names)
        found[item.step] = Left(network.kept_macs(item, small) / network.kept_macs(item, pruned), filters)
    return found


def _filters(graph: Graph) -> dict[str, int]:
    """Name of each node with weights -> filters that are not empty."""
    return {node.name: int(np.count_nonzero(np.any(weight != 0, axis=tuple(range(1, weight.ndim)))))
            for node in graph if len(node.inputs) > 1
            and (weight := graph.constants.get(node.inputs[1])) is not None and weight.ndim > 1}


def predict(network: Network, table: LatencyTable, cells: Mapping[str, Cell]) -> Prediction:
    """Seconds of ``network`` with each item (by its step) under its cell, its neighbours' cells counted in.

    Raises:
        DataError: the table has nothing about the network, or about a scheme on one of its layers.
    """
    alone = table.predict(network, cells)
    left = what_is_left(network, cells)
    seconds = {item.step: (alone.items[item.step] if left[item.step].work > 0.99 else
                           min(alone.items[item.step], _smaller(item, table, cells, left[item.step])))
               for item in network.items}
    return Prediction(alone.rest + sum(seconds.values()), seconds, alone.rest, alone.interpolated)


def _smaller(item: Item, table: LatencyTable, cells: Mapping[str, Cell], left: Left) -> float:
    """Seconds of an item that has only a part of its own work left.

    Filters that it need not compute take their part of all its time along, outputs as well as work. Channels that it
    need not read spare it work alone, as a higher rate does; where nothing is known, their part of the time.
    """
    if not left.work or not left.filters:
        return 0.0
    scheme, rate = cells.get(item.step, (_SMALLER, 1.0))
    work = min(1.0, left.work / left.filters)
    found = table.estimate(item.key, scheme if scheme.prunes else _SMALLER, rate / work)
    return left.filters * (found[0] if found is not None else table.dense(item) * work)
