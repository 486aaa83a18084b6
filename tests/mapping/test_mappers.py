"""Rules and exact mapping on a small network, with latencies and costs made up by formulas."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest

from blockpunch.errors import DataError, PlanError
from blockpunch.mapping import Goal, LatencyTable, Network
from blockpunch.mapping.choices import contenders, options
from blockpunch.mapping.exact import map_exact
from blockpunch.mapping.grid import DENSE, refines, schemes_for
from blockpunch.mapping.network import Cell, Item
from blockpunch.mapping.rules import map_rules
from blockpunch.mapping.table import Timing
from blockpunch.plan import Plan
from blockpunch.pruning import prune_onnx
from blockpunch.schemes import Scheme
from mapping_cases import by_work, fill

UNSTRUCTURED, PATTERN = Scheme("unstructured"), Scheme("pattern")
NARROW, BROAD = Scheme("block-shuffled", (4, 1)), Scheme("block-shuffled", (16, 4))


@pytest.fixture
def table(tmp_path: Path, network: Network) -> LatencyTable:
    return fill(LatencyTable(tmp_path / "t.jsonl", network.target, model="net.onnx"), network)


@pytest.fixture
def costs(network: Network, table: LatencyTable) -> dict[str, dict[tuple[str, float], float]]:
    """Larger groups and higher rates lose more."""
    return {name: {(str(s), r): (1 - 1 / r) * (1 + (s.block or (40, 1))[0] / 20) for s, r in cells}
            for name, cells in contenders(network, table).items()}


@pytest.mark.parametrize("speedup", [1.2, 1.7, 2.5])
def test_exact_is_the_best_of_all_combinations(network: Network, table: LatencyTable, speedup: float,
                                               costs: dict[str, dict[tuple[str, float], float]]) -> None:
    mapped = map_exact(network, table, costs, Goal(speedup=speedup))
    offered = [options(item, table, costs) for item in network.items]
    budget = mapped.dense / speedup - mapped.rest
    best = min(sum(o.cost for o in combination) for combination in product(*offered)
               if sum(o.seconds for o in combination) <= budget)
    assert mapped.cost == pytest.approx(best)
    assert mapped.speedup >= speedup
    total = sum(entry.latency_ms or 0 for entry in mapped.plan.layers.values()) + mapped.rest * 1e3
    assert total == pytest.approx(mapped.seconds * 1e3, rel=1e-4)
    assert "instead: " in mapped.plan.layers["second"].reason and "dense (" in mapped.plan.layers["second"].reason


def test_the_frontier_falls(network: Network, table: LatencyTable,
                            costs: dict[str, dict[tuple[str, float], float]]) -> None:
    points = map_exact(network, table, costs, Goal(speedup=1.5)).frontier
    assert len(points) > 5
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(points))
    assert points[-1][1] == 0


def test_unreachable_goals_name_the_best_point(network: Network, table: LatencyTable,
                                               costs: dict[str, dict[tuple[str, float], float]]) -> None:
    for call in (lambda goal: map_exact(network, table, costs, goal), lambda goal: map_rules(network, table, goal)):
        with pytest.raises(PlanError, match="cannot be reached") as caught:
            call(Goal(speedup=500))
        most = float(str(caught.value).rpartition("--speedup ")[2])
        assert call(Goal(speedup=most)).speedup >= most
    with pytest.raises(PlanError, match="one goal"):
        Goal(speedup=2, latency_ms=3)
    with pytest.raises(DataError, match="no errors"):
        map_exact(network, table, {}, Goal(speedup=1.5))


def test_contenders_leave_out_what_cannot_win(network: Network, table: LatencyTable) -> None:
    cells = contenders(network, table)
    assert cells.keys() == {"second"}  # the first convolution and the last layer stay dense
    assert (Scheme("filter"), 1.5) in cells["second"]
    kept = dict.fromkeys(cells["second"])
    # 4x1 takes as long as unstructured at half the speed: at equal rates the finer one is out where it is slower.
    assert (BROAD, 2.0) in kept and (NARROW, 2.0) in kept
    layer = network.items[1].layers[0]
    assert refines(UNSTRUCTURED, PATTERN, layer) and refines(NARROW, BROAD, layer)
    assert not refines(BROAD, NARROW, layer) and not refines(NARROW, PATTERN, layer)
    assert not refines(NARROW, Scheme("filter"), layer) and refines(NARROW, Scheme("channel"), layer)
    assert not any(refines(scheme, scheme, layer) for scheme in schemes_for(layer))


def test_a_finer_scheme_that_is_no_slower_ousts_the_coarser(tmp_path: Path, network: Network) -> None:
    def flat(item: Item, cell: Cell) -> float:
        return by_work(item, (BROAD, cell[1])) if cell[0].block else by_work(item, cell)

    cells = contenders(network, fill(LatencyTable(tmp_path / "flat.jsonl", network.target), network, flat))["second"]
    assert {scheme for scheme, _ in cells if scheme.regularity == "block-shuffled"} == {NARROW}


def test_rules_take_the_smallest_block_near_coarse_structured(network: Network, table: LatencyTable) -> None:
    mapped = map_rules(network, table, Goal(speedup=1.5), beta=0.3)
    entry = mapped.plan.layers["second"]
    assert entry.scheme == Scheme("block-shuffled", (8, 1))  # takes 1.25 times as long, 4x1 takes 1.5 times
    assert "too slow: block-shuffled:4x1" in entry.reason and mapped.speedup >= 1.5
    assert mapped.plan.layers["first"].reason == "first convolution" and not mapped.plan.layers["last"].prunes
    tighter = map_rules(network, table, Goal(speedup=1.5), beta=0.15).plan.layers["second"]
    assert tighter.scheme == Scheme("block", (16, 16)) or tighter.scheme == BROAD
    hard = map_rules(network, table, Goal(speedup=1.5), beta=0.6, hard_data=True).plan.layers["second"]
    assert hard.scheme == PATTERN and "hard data" in hard.reason


def test_plans_can_be_saved_and_used(network: Network, table: LatencyTable, small_wide: Path, tmp_path: Path) -> None:
    mapped = map_rules(network, table, Goal(latency_ms=table.predict(network, {}).seconds * 1e3 / 1.4))
    mapped.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.layers == mapped.plan.layers
    report = prune_onnx(small_wide, plan, tmp_path / "pruned.onnx")
    assert report.kept < report.weights


def test_rates_that_hardly_save_time_are_no_contenders(tmp_path: Path, network: Network) -> None:
    """Nothing is gained beyond rate 4: the costs of higher rates need not be known."""
    def flat(item: Item, cell: Cell) -> float:
        return by_work(item, (cell[0], min(cell[1], 4.0)))

    cells = contenders(network, fill(LatencyTable(tmp_path / "flat.jsonl", network.target), network, flat))["second"]
    assert cells and max(rate for _, rate in cells) == 4.0


def test_a_table_that_knows_too_little_asks_for_more_measurements(tmp_path: Path, network: Network) -> None:
    table = LatencyTable(tmp_path / "t.jsonl", network.target)
    cells = {item.step: Timing(item.key, (DENSE, 1.0), 1.0) for item in network.items}
    table.add(network, cells, 0.1, [1.0] * len(network.items))
    with pytest.raises(DataError, match=r"(?s)no layer is known to run faster.*--profile-seconds"):
        map_exact(network, table, {}, Goal(speedup=1.2))
