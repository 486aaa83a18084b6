"""Layers that make each other smaller: which do, and plans that make use of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import Goal, LatencyTable, Network
from blockpunch.mapping.choices import contenders
from blockpunch.mapping.coupling import Chains
from blockpunch.mapping.exact import Exact, map_exact
from blockpunch.mapping.links import Link, links
from blockpunch.mapping.prediction import predict
from blockpunch.pruning.graph_module import GraphModule
from blockpunch.pruning.layer_errors import layer_errors
from blockpunch.target import Target
from mapping_cases import fill


class Inverted(nn.Module):
    """A first layer, an inverted residual, a layer with two readers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.expand, self.project = nn.Conv2d(16, 96, 1), nn.Conv2d(96, 16, 1)
        self.depthwise = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.left, self.right = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 1)
        self.tail, self.head = nn.Conv2d(32, 64, 1), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.project(torch.relu(self.depthwise(torch.relu(self.expand(x)))))
        x = torch.relu(self.left(x))
        return self.head(torch.relu(self.tail(x + self.right(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def inverted() -> Network:
    torch.manual_seed(0)
    return Network(optimize(load_graph(Inverted().eval(), torch.zeros(1, 3, 12, 12))), Target.host())


def test_only_layers_alone_with_a_map_are_linked(inverted: Network) -> None:
    assert links(inverted.graph) == [Link("expand", "project", ("depthwise",), True), Link("tail", "head", (), False)]


def test_an_output_is_read_by_its_user() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.one(x)
            return y, self.three(self.two(y))

    graph = optimize(load_graph(Twice().eval(), torch.zeros(1, 3, 4, 4)))
    assert links(graph) == [Link("two", "three", (), False)]


def test_plans_make_use_of_what_layers_save_each_other(inverted: Network, tmp_path: Path) -> None:
    table = fill(LatencyTable(tmp_path / "t.jsonl", inverted.target), inverted)
    images = list(torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(0)).split(16))
    cells = contenders(inverted, table)
    assert {scheme.regularity for scheme, _ in cells["project"]} >= {"channel"}
    assert {scheme.regularity for scheme, _ in cells["expand"]} >= {"filter"}
    found = layer_errors(GraphModule(inverted_graph()), images, cells)
    apart = Exact.solve(inverted, table, found.costs, {})
    mapped = map_exact(inverted, table, found.costs, Goal(speedup=1.6), alive=found.alive)
    point = apart.within(mapped.dense / 1.6)
    assert point is not None and mapped.cost is not None
    assert mapped.seconds <= mapped.dense / 1.6 and mapped.cost < apart.cost(point)
    layers = mapped.plan.layers
    cells_of = {item.step: (layers[item.layers[0].name].scheme, layers[item.layers[0].name].rate)
                for item in inverted.items if layers[item.layers[0].name].prunes}
    assert predict(inverted, table, cells_of).seconds == pytest.approx(mapped.seconds)


def inverted_graph():
    torch.manual_seed(0)
    return load_graph(Inverted().eval(), torch.zeros(1, 3, 12, 12))


def test_what_is_saved_is_what_the_masks_leave(inverted: Network, tmp_path: Path) -> None:
    table = fill(LatencyTable(tmp_path / "t.jsonl", inverted.target), inverted)
    images = list(torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0)).split(16))
    found = layer_errors(GraphModule(inverted_graph()), images, {"expand": [("filter", 2.0), ("unstructured", 2.0)],
                                                               "project": [("channel", 3.0)]},
                         store=tmp_path / "errors.json")
    filters, _ = found.alive["expand"]["filter", 2.0]
    _, channels = found.alive["project"]["channel", 3.0]
    assert filters.sum() == 48 and channels.sum() == 32
    again = type(found).load(tmp_path / "errors.json")
    assert np.array_equal(again.alive["project"]["channel", 3.0][1], channels)
    exact = Exact.solve(inverted, table, found.costs, found.alive)
    chains = Chains.of(inverted, exact.offered, found.alive)
    at = {item.layers[0].name: n for n, item in enumerate(inverted.items)}
    coupling = chains.couplings[chains.order.index(at["project"])]
    assert coupling is not None and chains.order[chains.order.index(at["project"]) - 1] == at["expand"]
    numbers = {layer: {str(option.scheme): n for n, option in enumerate(exact.offered[at[layer]])}
               for layer in ("expand", "project")}
    both = int((filters & channels).sum())
    pair = numbers["expand"]["filter"], numbers["project"]["channel"]
    assert coupling.before[pair] == pytest.approx(both / 48) and coupling.own[pair] == pytest.approx(both / 32)
    depthwise = table.dense(inverted.items[at["depthwise"]])
    assert coupling.between[pair] == pytest.approx(depthwise * (1 - both / 96))
    fine = numbers["expand"]["unstructured"], 0  # its filters are not all zero behind padding, whatever they are
    assert coupling.before[fine] == 1 and coupling.own[fine] == 1 and coupling.between[fine] == 0
