"""Predictions follow what the compiler makes of a plan: smaller neighbours, and where one form of kernel ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockpunch.graph.builder import Const, GraphBuilder
from blockpunch.graph.passes import optimize
from blockpunch.mapping import LatencyTable, Network
from blockpunch.mapping.grid import DENSE
from blockpunch.mapping.network import Item
from blockpunch.mapping.prediction import kept_macs_of, predict, work_of
from blockpunch.mapping.table import Timing, Work
from blockpunch.schemes import Scheme
from blockpunch.target import Target
from mapping_cases import fill

module: Any = __import__("blockpunch.mapping.prediction", fromlist=["predict"])
BLOCK = Scheme("block-shuffled", (4, 1))


def item_of(network: Network, step: str) -> Item:
    return next(item for item in network.items if item.step == step)


@pytest.mark.parametrize("scheme, rate, step, neighbour", [
    ("channel", 4.0, "second", "first"), ("filter", 4.0, "first", "second"), ("filter", 4.0, "second", "last"),
    ("unstructured", 1000.0, "second", "first")])
def test_a_smaller_neighbour_takes_its_cycles(network: Network, tmp_path: Path, scheme: str, rate: float, step: str,
                                              neighbour: str) -> None:
    table = LatencyTable(tmp_path / "t.jsonl", network.target)
    for item in network.items:  # two nanoseconds for each modelled cycle, whatever the cell
        for cell in ((DENSE, 1.0), (Scheme(scheme), rate)):
            program = network.compile(network.pruned({item.step: cell} if cell[1] > 1 else {}))
            work = work_of(program, item)
            seconds = 2e-9 * work.cycles if work else 1e-6
            table.add(network, {item.step: Timing(item.key, cell, seconds, work)}, rest=0.0, beside=[1.0])
    cells = {step: (Scheme(scheme), rate)}
    found, alone = predict(network, table, cells), table.predict(network, cells)
    program = network.compile(network.pruned(cells))
    expected = work_of(program, item_of(network, neighbour))
    if expected:
        assert found.items[neighbour] == pytest.approx(2e-9 * expected.cycles, rel=0.02)
    assert found.items[neighbour] < 0.9 * alone.items[neighbour]
    assert found.items[step] == pytest.approx(alone.items[step], rel=0.02)
    assert found.seconds == pytest.approx(sum(found.items.values()) + found.rest)


def test_what_zeros_keep_apart_counts_as_one_choice() -> None:
    rng, graph = np.random.default_rng(0), GraphBuilder("net")
    image = graph.add_input("image", (1, 16, 9, 9))
    weights = [Const(rng.standard_normal((32, c, 1, 1)).astype(np.float32)) for c in (16, 16, 32, 32)]
    plain = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
    both = []
    for part, first, second in zip(("main", "shortcut"), weights[:2], weights[2:], strict=True):
        graph.path = f"{part}.0"
        x = graph.emit("Relu", [graph.emit("Conv", [image, first], **plain)])
        graph.path = f"{part}.1"
        both.append(graph.emit("Conv", [x, second], **plain))
    network = Network(optimize(graph.finish([("y", graph.emit("Add", both))])), Target.host())
    (item,) = (item for item in network.items if len(item.layers) == 2)
    for scheme, steps in ((Scheme("block-punched", (4, 1)), 1), (BLOCK, 2)):
        pruned = network.pruned({item.step: (scheme, 4.0)})
        program = network.compile(pruned)
        names = {layer.name for layer in item.layers}
        assert sum(step.name in names for step in program.steps) == steps
        assert item.total(kept_macs_of(program)) == pytest.approx(network.kept_macs(item, pruned))
        work = work_of(program, item)
        assert work and work.form.count(" and ") == steps - 1


def test_layers_that_nothing_takes_from_are_as_in_the_table(network: Network, tmp_path: Path) -> None:
    table = fill(LatencyTable(tmp_path / "t.jsonl", network.target), network)
    few = {"first": (BLOCK, 1.5)}
    assert predict(network, table, few) == table.predict(network, few)
    assert predict(network, table, {}) == table.predict(network, {})


@pytest.mark.parametrize("form, rate, cycles, expected", [
    ("winograd", 2.5, 100.0, 1.5),       # as at rate 2
    ("rows", 4.0, 150.0, 1.2),           # 1.5 times the cycles of rate 6
    ("rows", 6.0, 100.0, 0.8), ("rows", 7.0, 90.0, 0.8 - 0.2 * (1 / 6 - 1 / 7) / (1 / 6 - 1 / 8)),
    ("rows", 9.0, 70.0, 0.6),            # beyond all
    ("pixels", 4.0, 80.0, 0.4),          # half the seconds for a cycle, as in another scheme of this form
    ("patterns", 4.0, 80.0, 0.64)])      # never measured: the nearest in cycles
def test_where_another_form_takes_over(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str,
                                       rate: float, cycles: float, expected: float) -> None:
    table, item = fill(LatencyTable(tmp_path / "t.jsonl", network.target), network), item_of(network, "second")
    other = LatencyTable(tmp_path / "other.jsonl", network.target)
    measured = [(1.0, 1.4, Work("winograd", 95.0)), (2.0, 1.5, Work("winograd", 100.0)),
                (6.0, 0.8, Work("rows", 100.0)), (8.0, 0.6, Work("rows", 75.0))]
    for at, seconds, work in measured:
        cell = (BLOCK if at > 1 else DENSE, at)
        other.add(network, {item.step: Timing(item.key, cell, seconds, work)}, rest=1e-6, beside=[1.0])
    wide = Timing(item.key, (Scheme("block-shuffled", (8, 4)), 4.0), 0.2, Work("pixels", 40.0))
    other.add(network, {item.step: wide}, rest=1e-6, beside=[1.0])
    for neighbour in network.items:
        if neighbour is not item:
            timing = Timing(neighbour.key, (DENSE, 1.0), table.dense(neighbour))
            other.add(network, {neighbour.step: timing}, rest=1e-6, beside=[1.0])
    monkeypatch.setattr(module, "work_of", lambda program, of: Work(form, cycles) if of == item else None)
    read = LatencyTable(tmp_path / "other.jsonl", network.target)
    assert read.work(item.key, BLOCK, 6.0) == Work("rows", 100.0)
    assert predict(network, read, {item.step: (BLOCK, rate)}).items[item.step] == pytest.approx(expected)


@pytest.mark.parametrize("pruned, regularity", [("second", "filter"), ("first", "channel")])
def test_an_unpruned_layer_is_like_what_its_neighbour_made_of_it(network: Network, tmp_path: Path, pruned: str,
                                                                 regularity: str) -> None:
    """Channels that the second layer drops are filters of the first one, and vice versa: each has its own price."""
    table, left = LatencyTable(tmp_path / "t.jsonl", network.target), {"second": "first", "first": "second"}[pruned]
    for item in network.items:
        for scheme, seconds in (("filter", 3e-9), ("channel", 5e-9)):
            for cell in ((DENSE, 1.0), (Scheme(scheme), 4.0)):
                work = work_of(network.compile(network.pruned({item.step: cell} if cell[1] > 1 else {})), item)
                taken = Timing(item.key, cell, seconds * work.cycles if work else 1e-6, work)
                table.add(network, {item.step: taken}, rest=0.0, beside=[1.0])
    cells = {pruned: (Scheme("channel" if pruned == "second" else "filter"), 4.0)}
    item = item_of(network, left)
    work = work_of(network.compile(network.pruned(cells)), item)
    assert work
    price = {"filter": 3e-9, "channel": 5e-9}[regularity]
    assert predict(network, table, cells).items[left] == pytest.approx(price * work.cycles, rel=0.02)


def test_steps_without_weights_go_with_their_bytes(network: Network, tmp_path: Path) -> None:
    table, half = fill(LatencyTable(tmp_path / "t.jsonl", network.target), network), (Scheme("filter"), 2.0)
    (pool,) = (step for step in network.program.steps if step.kind == "reduce")
    others = [step for step in network.program.steps if step.kind not in ("reduce", "conv", "dot")]
    kept = sum(step.read_bytes + step.written_bytes for step in others)
    moved = pool.read_bytes + pool.written_bytes
    found = predict(network, table, {"second": half})
    assert found.rest == pytest.approx(1e-6 * (kept + moved / 2) / (kept + moved))
    assert predict(network, table, {"first": (BLOCK, 1.5)}).rest == 1e-6
