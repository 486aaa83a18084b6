"""Measuring a latency table: whole networks in which every layer is pruned by another cell, step by step.

A round gives each item the next cell that its shape still lacks, compiles the network, and times its steps while it
runs: fusion, and what the caches hold, are those of a running network. Items of one shape share the work. The dense
network runs in turns with it; how fast *it* runs just now tells how fast the machine is.

The compiler drops channels that nobody needs (:mod:`blockpunch.graph.passes.shrink`), so that whole filters or channels
which go from one layer make its neighbours smaller, too. So a cell that empties some is handed out where the neighbours
have nothing to measure. A neighbour's time that is not that of its own cell, for all that, is not stored, and the cell
is measured in another round. The table holds what a cell does to its own layer.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from blockpunch.artifact import Artifact
from blockpunch.compiler import Program, toolchain
from blockpunch.errors import TargetError
from blockpunch.mapping.curves import between, doubt
from blockpunch.mapping.grid import COARSE, DENSE, rates_for, schemes_for
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.mapping.prediction import kept_macs_of, work_of
from blockpunch.mapping.table import BELIEVED, DOUBT, LatencyTable, Timing
from blockpunch.measure.engines.base import random_inputs
from blockpunch.measure.pinning import pinned
from blockpunch.runtime.session import Session

Progress = Callable[[str, float, float], None]
"""Called with a line of text, the rounds done, and how many there will be as far as is known."""

NEGLIGIBLE = 1e-3
"""A cell in doubt is left out where the difference, in all items of its shape, is less than this part of the
network's time."""
TRIES = 6
"""Rounds after which a cell that is not known yet is stored although neighbours have made its layer smaller, and one
that is known is not measured again."""
TURNS, MOST_TURNS = 3, 12
CALM = 1.1
"""Turns go on while the dense network takes more than so many times its usual time: the machine is busy just now."""
TURN_S, LEAST_RUNS = 0.12, 4
UNDISTURBED = 0.05
"""The part of the runs whose times count. What else runs on a machine only adds to a step's time, and much: half as
much again where the other thread of a core is busy. Is it so about half of the time, medians fall on either side."""


@dataclass
class _Queue:
    """What the layers of one shape still lack."""

    items: list[Item]
    missing: list[Cell] = field(default_factory=list)


def profile(network: Network, table: LatencyTable, progress: Progress | None = None, *,
            seconds: float = math.inf) -> int:
    """Measure what ``table`` lacks about ``network``; every round is on disk before the next one begins.

    Args:
        network: dense.
        table: to add to.
        progress: told about every round.
        seconds: time after which no round begins; what is known then is interpolated. The coarse grid comes first.

    Returns:
        How many rounds there were (networks that were compiled).

    Raises:
        TargetError: this machine cannot run code for the target.
        OutputError: the table cannot be written.
    """
    runs_here, lacking = network.target.runs_here()
    if not runs_here:
        raise TargetError(f"cannot measure for {network.target.name} here: this CPU lacks {', '.join(lacking)}",
                          fix="profile on such a machine")
    rng, tries = np.random.default_rng(0), Counter[tuple[str, Cell]]()
    empties = cache(partial(_empties, network))
    done, start = 0, time.monotonic()
    with ExitStack() as stack:
        dense = None
        while True:
            queues = _queues(network, table, tries)
            left = max((-(-len(queue.missing) // len(queue.items)) for queue in queues), default=0)
            known = table.rest(network) is not None
            if known and (not left or time.monotonic() - start > seconds):
                return done
            if dense is None:
                dense = stack.enter_context(_session(network, network.program))
            if progress:
                rest_s = (time.monotonic() - start) / done * left if done else None
                ends = "" if rest_s is None else f", about {rest_s:.0f} s to go"
                progress(f"profiling: {len(table)} cells measured{ends}", done, done + left)
            _round(network, table, _hand_out(network, queues, table, rng, empties), dense, tries)
            done += 1


def measure(network: Network, table: LatencyTable, cells: Mapping[str, Cell]) -> tuple[float, float]:
    """Seconds of ``network`` with its items (by step) under ``cells``, and the machine's pace; nothing is stored.

    The pace is how long the dense layers took beside it, over what ``table`` says: seconds / pace compare with it.
    """
    program = network.compile(network.pruned(cells))
    with _session(network, network.program) as dense, _session(network, program) as session:
        trial, beside = _times(session, dense, program, network, table)
    return sum(trial.values()), float(np.median([beside[item.step] / table.dense(item) for item in network.items]))


def wanted(item: Item, table: LatencyTable, whole_s: float, count: int = 1) -> list[Cell]:
    """Cells of an item that are still to be measured.

    Args:
        item: of any network.
        table: what is known.
        whole_s: seconds of the network, 0 if that is not known.
        count: items of the same shape in the network.
    """
    known = table.cells(item.key)
    if (DENSE, 1.0) not in known:
        return [(DENSE, 1.0)]
    if any(layer.depthwise for layer in item.layers):
        return []
    rates = {scheme: rates_for(scheme, item.layers[0]) for scheme in schemes_for(item.layers[0])}
    coarse = [(scheme, rate) for scheme in rates for rate in rates[scheme]
              if (rate in COARSE or rate == rates[scheme][-1]) and (scheme, rate) not in known]
    if coarse:
        return coarse
    found = [(scheme, rate) for scheme in rates for rate in table.rising(item.key, scheme)
             if known[scheme, rate] * count > NEGLIGIBLE * whole_s]
    if item.dense_because and table.count(item.key, (DENSE, 1.0)) < BELIEVED:
        found.append((DENSE, 1.0))  # first measured in a dense network, whose weights fill the caches
    for scheme in rates:
        curve = table.curve(item.key, scheme)
        for rate in sorted(set(rates[scheme]) - curve.keys()):
            off = doubt(curve, rate)
            if off > DOUBT * between(curve, rate) and off * count > NEGLIGIBLE * whole_s:
                found.append((scheme, rate))
    return found


def _queues(network: Network, table: LatencyTable, tries: Mapping[tuple[str, Cell], int]) -> list[_Queue]:
    by_key: dict[str, _Queue] = {}
    for item in network.items:
        by_key.setdefault(item.key, _Queue([])).items.append(item)
    known = [table.cells(item.key).get((DENSE, 1.0)) for item in network.items]
    whole = sum(seconds or 0.0 for seconds in known)
    for queue in by_key.values():
        item = queue.items[0]
        queue.missing = [cell for cell in wanted(item, table, whole, len(queue.items))
                         if cell not in table.cells(item.key) or tries.get((item.key, cell), 0) < TRIES]
    return list(by_key.values())


def _empties(network: Network, step: str, cell: Cell) -> bool:
    """Whether an item under a cell has filters or input channels without weights, which its neighbours then lack."""
    item = next(item for item in network.items if item.step == step)
    for layer in item.layers:
        mask = network.mask(layer, cell)
        if not mask.reshape(len(mask), -1).any(axis=1).all():
            return True
        if layer.conv_groups == 1 and not mask.reshape(*mask.shape[:2], -1).any(axis=(0, 2)).all():
            return True
    return False


def _hand_out(network: Network, queues: list[_Queue], table: LatencyTable, rng: np.random.Generator,
              empties: Callable[[str, Cell], bool]) -> dict[str, Cell]:
    """Step -> cell of the next round, schemes in random order, so that no round prunes all layers alike.

    Low rates come first: they are what most plans are made of, where there is no time to measure everything. Items of
    the longest queues choose first. One with nothing left, or beside a cell that would spoil its time, repeats a known
    cell that leaves its neighbours alone, of about the others' rate: the table holds medians.
    """
    missing = {queue.items[0].key: sorted((queue.missing[i] for i in rng.permutation(len(queue.missing))),
                                          key=lambda cell: cell[1]) for queue in queues}
    rounds = {queue.items[0].key: len(queue.missing) / len(queue.items) for queue in queues}
    places = rng.permutation(len(network.items))
    wanted: dict[str, Cell] = {}
    for item in sorted((network.items[at] for at in places), key=lambda item: -rounds[item.key]):
        waiting = missing[item.key]
        beside = [step for step in network.neighbours[item.step] if step in wanted]
        if any(empties(step, wanted[step]) for step in beside):
            continue
        cell = next((cell for cell in waiting if not beside or not empties(item.step, cell)), None)
        if cell is not None:
            wanted[item.step] = cell
            waiting.remove(cell)
    rates = [rate for _, rate in wanted.values() if rate > 1] or \
        [rate for item in network.items for _, rate in table.cells(item.key)]
    usual = float(np.median(rates)) if rates else 1.0
    return {item.step: wanted.get(item.step) or _known(item, table, usual, rng, empties) for item in network.items}


def _known(item: Item, table: LatencyTable, rate: float, rng: np.random.Generator,
           empties: Callable[[str, Cell], bool]) -> Cell:
    """A cell that was measured before and leaves the neighbours alone, of a rate as near as possible to ``rate``.

    What caches hold when a layer runs, weights most of all, depends on how much of them all the others take.
    """
    known = list(table.cells(item.key))
    shuffled = [known[int(at)] for at in rng.permutation(len(known))]
    nearest = sorted(shuffled, key=lambda cell: abs(math.log(cell[1] / rate)))
    return next((cell for cell in nearest if cell[1] == 1 or not empties(item.step, cell)), (DENSE, 1.0))


def _round(network: Network, table: LatencyTable, cells: Mapping[str, Cell], dense: Session,
           tries: Counter[tuple[str, Cell]]) -> None:
    """Compile, measure and store one network."""
    pruned = {step: cell for step, cell in cells.items() if cell[1] > 1}
    graph = network.pruned(pruned)
    program = network.compile(graph) if pruned else network.program
    with _session(network, program) if pruned else nullcontext(dense) as session:
        trial, beside = _times(session, dense, program, network, table)
    macs = kept_macs_of(program)
    found = {}
    for item in network.items:
        cell = cells[item.step]
        tries[item.key, cell] += 1
        whole = item.total(macs) >= 0.99 * network.kept_macs(item, graph)
        if whole or (tries[item.key, cell] >= TRIES and cell not in table.cells(item.key)):
            found[item.step] = Timing(item.key, cell, item.total(trial), work_of(program, item))
    steps = {layer.name for item in network.items for layer in item.layers}
    rest = sum(seconds for name, seconds in trial.items() if name not in steps)
    table.add(network, found, rest, [beside[item.step] for item in network.items])


def _session(network: Network, program: Program) -> Session:
    sources = {**program.source, **toolchain.runtime_sources()}
    built = toolchain.find_compiler(network.target).build(sources, network.target)
    return Session(Artifact.from_program(program, network.target, {}, built), threads=network.threads)


def _times(trial: Session, dense: Session, program: Program, network: Network,
           table: LatencyTable) -> tuple[dict[str, float], dict[str, float]]:
    """The undisturbed seconds of each step of both, run in turns; the first run of a turn warms the caches up.

    They are those of each step by itself: an interruption hits a few steps of a run, and other ones of the next.
    """
    inputs = random_inputs({spec.name: spec.shape for spec in trial.inputs})
    calm_s = CALM * table.predict(network, {}).seconds if table.rest(network) is not None else math.inf
    rows: tuple[list[list[float]], list[list[float]]] = ([], [])
    with pinned(trial.threads):
        for turn in range(1, MOST_TURNS + 1):
            for session, into in zip((dense, trial), rows, strict=True):
                session.run(inputs)
                stop, runs = time.perf_counter() + TURN_S, 0
                while runs < LEAST_RUNS or time.perf_counter() < stop:
                    into.append(list(session.run_profiled(inputs)[1]))
                    runs += 1
            beside, times = (np.quantile(row, UNDISTURBED, axis=0) for row in rows)
            if turn >= TURNS and beside.sum() <= calm_s:
                break
    return _by_step(program, times), _by_step(network.program, beside)


def _by_step(program: Program, seconds: np.typing.NDArray[np.float64]) -> dict[str, float]:
    found: dict[str, float] = {}
    for step, taken in zip(program.steps, seconds, strict=True):
        found[step.name] = found.get(step.name, 0.0) + float(taken)
    return found
