"""Measuring a table: it ends, goes on after an interruption, and a second network takes what it shares."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockpunch.mapping import LatencyTable, Network, profile
from blockpunch.mapping.grid import DENSE, RATES
from blockpunch.mapping.network import Cell
from blockpunch.mapping.prediction import work_of
from blockpunch.mapping.table import Timing
from blockpunch.schemes import Scheme

module = __import__("blockpunch.mapping.profile", fromlist=["profile"])


@pytest.fixture
def compiled(network: Network, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Cell]]:
    """Nothing is built or run: the seconds of a step are its kept multiply-adds. Returns what was asked for."""
    asked: list[dict[str, Cell]] = []
    prune = Network.pruned

    def spy(self: Network, cells: dict[str, Cell]) -> Any:
        asked.append(dict(cells))
        return prune(self, cells)

    def times(trial: Any, dense: Any, program: Any, network: Network, table: LatencyTable) -> Any:
        return tuple({step.name: 1e-9 * (step.kept_macs + 1) for step in p.steps} for p in (program, network.program))

    monkeypatch.setattr(Network, "pruned", spy)
    monkeypatch.setattr(module, "_session", lambda network, program: nullcontext(program))
    monkeypatch.setattr(module, "_times", times)
    return asked


def test_an_interrupted_profile_goes_on_and_measures_nothing_twice(
        network: Network, tmp_path: Path, compiled: list[dict[str, Cell]]) -> None:
    path, second = tmp_path / "t.jsonl", network.items[1]

    def stop(text: str, done: float, total: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(network, LatencyTable(path, network.target), stop)
    before = [cells[second.step] for cells in compiled if second.step in cells]
    assert len(before) == 4  # the first round is dense
    assert sum(len(LatencyTable(path, network.target).cells(item.key)) for item in network.items) > 5
    profile(network, LatencyTable(path, network.target))
    table = LatencyTable(path, network.target)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    measured = [(line["scheme"], line["rate"]) for line in lines if line.get("layer") == second.key]
    assert len(set(measured)) == len(table.cells(second.key))
    regularities = {scheme.regularity for scheme, _ in table.cells(second.key)}
    assert regularities == {"dense", "unstructured", "filter", "channel", "pattern", "block", "block-shuffled"}
    assert profile(network, table) == 0


def test_neighbours_share_maps(network: Network) -> None:
    """Each item has some, and they have it."""
    names = {layer.name: item.step for item in network.items for layer in item.layers}
    assert all(step not in others and all(step in network.neighbours[other] for other in others)
               for step, others in network.neighbours.items())
    assert set(network.neighbours) == set(names.values()) and all(network.neighbours.values())


def test_no_cell_is_measured_beside_one_that_takes_its_channels(
        network: Network, tmp_path: Path, compiled: list[dict[str, Cell]]) -> None:
    table = LatencyTable(tmp_path / "t.jsonl", network.target)
    profile(network, table)
    known: dict[str, set[Cell]] = {item.key: {(DENSE, 1.0)} for item in network.items}
    spoilt = 0
    for cells in compiled:
        fresh = {item.step for item in network.items if cells.get(item.step, (DENSE, 1.0)) not in known[item.key]}
        taking = {step for step in cells if module._empties(network, step, cells[step])}
        spoilt += sum(len(fresh & network.neighbours[step]) for step in taking)
        for item in network.items:
            known[item.key].add(cells.get(item.step, (DENSE, 1.0)))
    assert spoilt == 0 and len(compiled) < 80


def test_predictions_between_rates_are_near(network: Network, tmp_path: Path, compiled: list[dict[str, Cell]]) -> None:
    """Time that goes with the work is known at every rate, though few were measured."""
    table = LatencyTable(tmp_path / "t.jsonl", network.target)
    profile(network, table)
    second = network.items[1]
    scheme = next(s for s, _ in table.cells(second.key) if str(s) == "block-shuffled:8x1")
    measured = [rate for rate in RATES if (scheme, rate) in table.cells(second.key)]
    assert len(measured) < len(RATES)
    for rate in RATES:
        predicted = table.predict(network, {second.step: (scheme, rate)}).items[second.step]
        macs = network.kept_macs(second, network.pruned({second.step: (scheme, rate)}))
        assert predicted == pytest.approx(1e-9 * macs, rel=0.15), rate


def test_what_was_run_is_kept_beside_the_seconds(network: Network, tmp_path: Path,
                                                 compiled: list[dict[str, Cell]]) -> None:
    profile(network, LatencyTable(tmp_path / "t.jsonl", network.target))
    table, second = LatencyTable(tmp_path / "t.jsonl", network.target), network.items[1]
    forms = set()
    for scheme, rate in table.cells(second.key):
        alone = network.compile(network.pruned({second.step: (scheme, rate)} if rate > 1 else {}))
        work, wanted = table.work(second.key, scheme, rate), work_of(alone, second)
        # the neighbours' zeros decide along with its own whether their maps have gaps
        assert work and wanted and work.form == wanted.form, (scheme, rate)
        assert work.cycles == pytest.approx(wanted.cycles, rel=0.1), (scheme, rate)
        forms.add(work.form)
    assert len(forms) > 1


def test_what_an_interruption_spoilt_is_measured_again(network: Network, tmp_path: Path,
                                                       compiled: list[dict[str, Cell]],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    second, usual, spoilt = network.items[1], module._times, []

    def times(*run: Any) -> Any:
        trial, beside = usual(*run)
        cell = compiled[-1].get(second.step, (DENSE, 1.0))
        if not spoilt and cell[1] == 6:
            spoilt.append(cell)
            trial[second.step] *= 30
        return trial, beside

    monkeypatch.setattr(module, "_times", times)
    table = LatencyTable(tmp_path / "t.jsonl", network.target)
    profile(network, table)
    for scheme, rate in table.cells(second.key):
        macs = network.kept_macs(second, network.pruned({second.step: (scheme, rate)} if rate > 1 else {}))
        assert table.curve(second.key, scheme).get(rate, 1e-9 * macs) == pytest.approx(1e-9 * macs, rel=0.02)
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    again = [line for line in lines if line.get("layer") == second.key
             and (line["scheme"], line["rate"]) == (str(spoilt[0][0]), 6.0)]
    assert len(again) == 3


@pytest.mark.parametrize("rate", [2.0, 6.0, 12.0])
def test_layers_with_nothing_left_run_at_the_rate_of_the_others(network: Network, tmp_path: Path, rate: float,
                                                                compiled: list[dict[str, Cell]]) -> None:
    table, second = LatencyTable(tmp_path / "t.jsonl", network.target), network.items[1]
    profile(network, table)
    queues = [module._Queue([item], [(Scheme("pattern"), rate)] if item == second else []) for item in network.items]
    cells = module._hand_out(network, queues, table, np.random.default_rng(0),
                             lambda step, cell: cell[0].regularity == "filter")
    assert cells.pop(second.step) == (Scheme("pattern"), rate)
    for item in network.items:
        if item != second:
            scheme, chosen = cells[item.step]
            others = {r for s, r in table.cells(item.key) if s.regularity != "filter"}
            assert scheme.regularity != "filter"
            assert abs(np.log(chosen / rate)) == pytest.approx(min(abs(np.log(other / rate)) for other in others))


def test_what_plans_leave_dense_is_measured_beside_pruned_layers(network: Network, tmp_path: Path,
                                                                 compiled: list[dict[str, Cell]]) -> None:
    path = tmp_path / "t.jsonl"
    profile(network, LatencyTable(path, network.target))
    rounds: list[dict[str, float]] = []
    for line in map(json.loads, path.read_text().splitlines()[1:]):
        if "network" in line:
            rounds.append({})
        else:
            rounds[-1][line["layer"]] = line["rate"]
    left_dense = [item for item in network.items if item.dense_because]
    assert left_dense
    for item in left_dense:
        beside = [found.values() for found in rounds if found.get(item.key) == 1]
        assert sum(max(rates) > 1 for rates in beside) >= 2


class Machine:
    """Runs a program at a second for each step, and half as much again in its busy runs."""

    threads = 1

    def __init__(self, program: Any, busy: Any) -> None:
        self.inputs, self.steps, self.busy, self.runs = (), len(program.steps), busy, 0

    def run(self, inputs: Any) -> None:
        """Warm-up."""

    def run_profiled(self, inputs: Any) -> tuple[None, list[float]]:
        self.runs += 1
        return None, [1.5 if self.busy(self.runs) else 1.0] * self.steps


@pytest.mark.parametrize("busy, usual, turns, seconds", [
    (lambda run: run % 4, None, 3, 1.0),               # three of four runs, in every turn
    (lambda run: run <= 21, 1.0, 6, 1.0),              # and gone after five turns of four runs
    (lambda run: True, 1.0, 12, 1.5),                  # it does not end: no calm moment is waited for for ever
    (lambda run: True, 1.5, 3, 1.5),                   # it is usual
    (lambda run: True, None, 3, 1.5)])                 # nothing is known of what is usual
def test_undisturbed_seconds_count(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: Any,
                                   usual: float | None, turns: int, seconds: float) -> None:
    table = LatencyTable(tmp_path / "t.jsonl", network.target)
    if usual:
        steps = {layer.name for item in network.items for layer in item.layers}
        rest = usual * sum(step.name not in steps for step in network.program.steps)
        table.add(network, {item.step: Timing(item.key, (DENSE, 1.0), usual) for item in network.items}, rest,
                  [usual] * len(network.items))
    monkeypatch.setattr(module, "TURN_S", 0.0)
    trial, dense = Machine(network.program, busy), Machine(network.program, busy)
    both = module._times(trial, dense, network.program, network, table)
    assert trial.runs == dense.runs == turns * module.LEAST_RUNS
    assert all(set(found.values()) == {seconds} for found in both)


def test_a_network_that_shares_its_layers_needs_one_round(network: Network, tmp_path: Path,
                                                          compiled: list[dict[str, Cell]]) -> None:
    from dataclasses import replace

    table = LatencyTable(tmp_path / "t.jsonl", network.target)
    profile(network, table)
    graph = network.graph.copy()
    graph.nodes = [replace(node, attrs={**node.attrs, "mark": 1}) if node.op == "Flatten" else node for node in graph]
    other = Network(replace(graph, name="other"), network.target)
    assert other.key == network.key or profile(other, table) == 1


def test_a_real_round(network: Network, tmp_path: Path) -> None:
    """Built and run: one dense and one pruned network."""
    table = LatencyTable(tmp_path / "t.jsonl", network.target)

    def stop(text: str, done: float, total: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(network, table, stop)
    second = network.items[1]
    assert (DENSE, 1.0) in table.cells(second.key) and len(table) > len(network.items)
    assert all(0 < seconds < 1 for item in network.items for seconds in table.cells(item.key).values())
    assert table.rest(network) is not None


def test_layers_that_neighbours_made_smaller_do_not_count_as_dense(network: Network, tmp_path: Path,
                                                                   compiled: list[dict[str, Cell]]) -> None:
    path = tmp_path / "t.jsonl"
    profile(network, LatencyTable(path, network.target))
    dense: dict[str, set[float]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        if line.get("scheme") == "dense":
            dense.setdefault(line["layer"], set()).add(line["seconds"])
    assert dense.keys() == {item.key for item in network.items}
    assert all(max(times) < 1.02 * min(times) for times in dense.values())


def test_every_cell_is_measured_with_all_its_own_work(network: Network, tmp_path: Path,
                                                      compiled: list[dict[str, Cell]]) -> None:
    """Neighbours that empty filters spoil a cell's round; it is measured among dense layers then."""
    table, rounds = LatencyTable(tmp_path / "t.jsonl", network.target), 0

    def count(text: str, done: float, total: float) -> None:
        nonlocal rounds
        rounds += 1

    profile(network, table, count)
    for item in network.items:
        for cell, seconds in table.cells(item.key).items():
            macs = network.kept_macs(item, network.pruned({item.step: cell} if cell[1] > 1 else {}))
            assert seconds == pytest.approx(1e-9 * (macs + 1), rel=0.02), (item.step, str(cell[0]), cell[1])
    assert rounds < 60
