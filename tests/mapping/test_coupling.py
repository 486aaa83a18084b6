"""Whole filters and channels: what they do to the layers around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockpunch.mapping import LatencyTable, Network
from blockpunch.mapping.coupling import predict, what_is_left
from blockpunch.schemes import Scheme
from mapping_cases import by_work, fill


@pytest.mark.parametrize("regularity, step, neighbour", [("channel", "second", "first"), ("filter", "first", "second"),
                                                         ("filter", "second", "last")])
def test_neighbours_shrink_as_the_compiler_shrinks_them(network: Network, regularity: str, step: str,
                                                        neighbour: str) -> None:
    cells = {step: (Scheme(regularity), 4.0)}
    left = what_is_left(network, cells)
    assert left[neighbour].work < 0.7 and left[step].work == 1.0  # a padded layer needs the constants of dead filters
    program = network.compile(network.pruned(cells))
    kept = {info.name: info.kept_macs for info in program.steps}
    item = next(item for item in network.items if item.step == neighbour)
    assert kept[neighbour] == pytest.approx(left[neighbour].work * sum(layer.macs for layer in item.layers), rel=0.02)


def test_a_neighbour_with_fewer_filters_takes_their_part_of_its_time(network: Network, tmp_path: Path) -> None:
    table = fill(LatencyTable(tmp_path / "t.jsonl", network.target), network)
    whole, block = (Scheme("channel"), 2.0), (Scheme("block-punched", (4, 1)), 3.0)
    found = predict(network, table, {"first": block, "second": whole})
    alone = table.predict(network, {"first": block, "second": whole})
    first = next(item for item in network.items if item.step == "first")
    assert found.items["first"] == pytest.approx(by_work(first, block) / 2, rel=0.02)
    assert found.items["first"] < alone.items["first"] and found.items["second"] == alone.items["second"]
    assert found.seconds == pytest.approx(sum(found.items.values()) + found.rest)
    few = {"first": (Scheme("block-punched", (4, 1)), 1.5)}
    assert predict(network, table, few) == table.predict(network, few)


def test_single_weights_at_a_high_rate_leave_filters_empty_too(network: Network) -> None:
    cells = {"second": (Scheme("unstructured"), 1000.0)}
    program, left = network.compile(network.pruned(cells)), what_is_left(network, cells)
    kept = {info.name: info.kept_macs for info in program.steps}
    first = next(item for item in network.items if item.step == "first")
    assert left["first"].work < 0.9
    assert kept["first"] == pytest.approx(left["first"].work * sum(layer.macs for layer in first.layers), rel=0.02)
