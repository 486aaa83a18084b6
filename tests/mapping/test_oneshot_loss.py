"""The loss of the search's candidates, on a small network in torch, and the search on it from end to end."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from blockpunch.errors import DataError
from blockpunch.graph import load_graph
from blockpunch.mapping import Goal, LatencyTable, Network
from blockpunch.mapping.choices import contenders
from blockpunch.mapping.exact import map_exact
from blockpunch.mapping.network import Cell
from blockpunch.mapping.search import Local, map_search
from blockpunch.mapping.search.oneshot import OneShotLoss
from blockpunch.plan import LayerPlan, Plan
from blockpunch.pruning import module_layers, prune_oneshot_
from blockpunch.pruning.graph_module import GraphModule
from blockpunch.pruning.layer_errors import layer_errors
from blockpunch.schemes import Scheme
from mapping_cases import fill

FILTER, NARROW = Scheme("filter"), Scheme("block-punched", (4, 1))


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    return list(torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0)).split(16))


@pytest.fixture(scope="module")
def model(small_wide: Path) -> GraphModule:
    return GraphModule(load_graph(small_wide)).eval()


@pytest.fixture(scope="module")
def loss(model: GraphModule, images: list[torch.Tensor]) -> OneShotLoss:
    return OneShotLoss(model, images[:2], images[2:])


def divergence(dense: nn.Module, pruned: nn.Module, batch: torch.Tensor) -> float:
    with torch.no_grad():
        chances, logs = dense(batch).double().softmax(1), pruned(batch).double().log_softmax(1)
    return float((chances * (chances.log() - logs)).sum(1).mean())


def test_losses_are_divergences_of_the_pruned_network(model: GraphModule, images: list[torch.Tensor],
                                                      loss: OneShotLoss) -> None:
    assert loss({}) == pytest.approx(0, abs=1e-6)
    cells: dict[str, Cell] = {"second": (NARROW, 4.0)}
    pruned = copy.deepcopy(model)
    prune_oneshot_(pruned, Plan({layer.name: LayerPlan(*cells.get(layer.name, (Scheme("dense"), 1.0)))
                                 for layer in module_layers(model)}), images[:2])
    truth = divergence(model, pruned, images[2])
    assert truth > 1e-4 and loss(cells, thorough=True) == pytest.approx(truth, rel=1e-2)
    assert loss({"second": (NARROW, 1.5)}) < loss(cells) < loss({"second": (FILTER, 8.0)})


def test_losses_stay_the_same_in_other_processes(loss: OneShotLoss, images: list[torch.Tensor],
                                                 model: GraphModule) -> None:
    cells: dict[str, Cell] = {"second": (NARROW, 3.0), "last": (Scheme("unstructured"), 2.0)}
    other = pickle.loads(pickle.dumps(loss))
    assert other(cells) == loss(cells) and other.fingerprint == loss.fingerprint
    assert OneShotLoss(model, images[:1], images[2:]).fingerprint != loss.fingerprint
    with pytest.raises(DataError, match="no images"):
        OneShotLoss(model, images, [])


def test_the_search_maps_a_network(network: Network, model: GraphModule, images: list[torch.Tensor], loss: OneShotLoss,
                                   tmp_path: Path) -> None:
    table = fill(LatencyTable(tmp_path / "t.jsonl", network.target), network)
    errors = layer_errors(model, images[:2], contenders(network, table))
    mapped, found = map_search(network, table, errors.costs, Goal(speedup=1.5), loss, evaluations=10,
                               journal=tmp_path / "j.jsonl")
    exact = map_exact(network, table, errors.costs, Goal(speedup=1.5))
    entry, before = mapped.plan.layers["second"], exact.plan.layers["second"]
    cells = {"second": (entry.scheme, entry.rate)}
    assert mapped.speedup >= 1.5 and entry.source == "search" and "instead: " in entry.reason
    assert found.loss == loss(cells, thorough=True) <= loss({"second": (before.scheme, before.rate)}, thorough=True)
    assert not mapped.plan.layers["first"].prunes and (tmp_path / "j.jsonl").exists()


def test_an_interrupt_stops_what_runs(model: GraphModule, images: list[torch.Tensor]) -> None:
    loss = OneShotLoss(model, images[:2], images[2:])
    with pytest.raises(KeyboardInterrupt), Local(1).serve(loss):
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="stopped at layer"):
        loss({"second": (NARROW, 4.0)})
