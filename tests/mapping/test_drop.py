"""The accuracy that plans cost: how it is counted, kept on disk, and walked along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from blockpunch.errors import DataError, PlanError
from blockpunch.graph import load_graph
from blockpunch.mapping import LatencyTable, Network
from blockpunch.mapping.choices import contenders
from blockpunch.mapping.drop import NEAR, TRIALS, map_within_drop
from blockpunch.mapping.evaluation import Evaluation, drop
from blockpunch.mapping.exact import Exact
from blockpunch.plan import LayerPlan, Plan
from blockpunch.pruning.graph_module import GraphModule
from blockpunch.schemes import Scheme
from mapping_cases import fill


@pytest.fixture
def exact(tmp_path: Path, network: Network) -> Exact:
    table = fill(LatencyTable(tmp_path / "t.jsonl", network.target), network)
    costs = {name: {(str(s), r): (1 - 1 / r) * (1 + (s.block or (40, 1))[0] / 20) for s, r in cells}
             for name, cells in contenders(network, table).items()}
    return Exact.solve(network, table, costs, {})


def test_drop_counts_labels_or_expects() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(4000, 5)) * 2
    pruned = dense + rng.normal(size=dense.shape)
    # Labels drawn from the dense network's own probabilities: then the expectation must agree with the count.
    chances = np.exp(dense) / np.exp(dense).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=row) for row in chances])
    counted, expected = drop(dense, pruned, labels), drop(dense, pruned, None)
    assert counted.points == pytest.approx(100 * float(np.mean(dense.argmax(1) == labels)
                                                       - np.mean(pruned.argmax(1) == labels)))
    assert counted.points > 3 * counted.error and expected.error < counted.error
    assert abs(counted.points - expected.points) < 3 * counted.error
    assert drop(chances, pruned, None).points == pytest.approx(expected.points)
    assert drop(dense, dense, None) == drop(dense, dense, dense.argmax(1)) and drop(dense, dense, None).points == 0


@pytest.mark.parametrize("bend", [0.5, 1.0, 2.0])
def test_the_walk_ends_beside_the_fastest_good_plan(exact: Exact, bend: float) -> None:
    tried: list[Plan] = []
    cost = {repr(exact.mapped(i).plan.layers): exact.cost(i) for i in range(len(exact))}

    def lost(plan: Plan) -> tuple[float, float]:
        tried.append(plan)
        return 3.0 * cost[repr(plan.layers)] ** bend, 0.1

    mapped = map_within_drop(exact, 2.5, lost)
    best = next(i for i in range(len(exact)) if 3.0 * exact.cost(i) ** bend <= 2.5)
    assert mapped.cost is not None and 3.0 * mapped.cost ** bend <= 2.5
    assert len(tried) == len(mapped.trials) <= TRIALS
    near_time = mapped.seconds - exact.seconds(best) < 0.05 * exact.dense.seconds
    assert near_time or 3.0 * mapped.cost ** bend >= (1 - NEAR) * 2.5


def test_a_loss_that_nothing_avoids_is_refused(exact: Exact) -> None:
    with pytest.raises(PlanError, match="no plan that was tried loses"):
        map_within_drop(exact, 0.5, lambda plan: (7.0, 1.0))


def test_evaluations_are_real_and_kept(network: Network, small_wide: Path, tmp_path: Path) -> None:
    model = GraphModule(load_graph(small_wide))
    images = list(torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)).split(8))
    fit, held_out = images[:2], images[2:]
    layers = {layer.name: LayerPlan(Scheme("dense"), 1.0, layer.shape) for layer in network.layers}
    with torch.no_grad():
        labels = model(held_out[0]).argmax(1).numpy()
    evaluation = Evaluation(model, fit, held_out, labels, store=tmp_path / "e.json")
    assert evaluation(Plan(layers)).points == 0
    second = next(layer for layer in network.layers if layer.name == "second")
    plan = Plan({**layers, "second": LayerPlan(Scheme("unstructured"), 100.0, second.shape)})
    found = evaluation(plan)
    assert found.points > 0 and found.agreement == pytest.approx(1 - found.points / 100)
    again = Evaluation(model, fit, held_out, labels, store=tmp_path / "e.json")
    again._ask = None  # type: ignore[method-assign,assignment]  # nothing is run any more
    assert again(plan) == found
    with pytest.raises(DataError, match="another model"):
        Evaluation(model, fit, held_out, None, store=tmp_path / "e.json")
    with pytest.raises(DataError, match="labels from"):
        Evaluation(model, fit, held_out, labels + 100)
