"""Seconds of a whole network under a plan: what the compiler makes of the plan, at the pace that was measured.

The plan is compiled, but not built. A layer that runs as it was measured takes the seconds of the table. Others are
near one that was measured: at another rate, or smaller, since filters and channels that go from a layer altogether take
work from the layers around it (:mod:`blockpunch.graph.passes.shrink`; of a layer with few filters, blocks and single
weights at a high rate leave some empty, too). Seconds go with the modelled cycles there, from the nearest measurement
*of the same form of kernel*: between two rates of which one runs dense in Winograd's form and the other by its zeros,
time is not linear in anything, but the compiler says on which side a rate falls. What no one prunes, pools say, goes
with the bytes that are left to it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping

from blockpunch.compiler import Program
from blockpunch.mapping.grid import DENSE
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.mapping.table import LatencyTable, Prediction, Work
from blockpunch.schemes import Scheme

Moved = Mapping[str, tuple[int, int]]
"""Step -> bytes that it reads and writes."""
_SAME = 0.01
"""Work that differs by no more than this part is the same."""
_FEWER_FILTERS, _FEWER_CHANNELS = Scheme("filter"), Scheme("channel")
"""What an unpruned layer that has become smaller is like."""


def work_of(program: Program, item: Item) -> Work | None:
    """What an item was compiled to; None where nothing models its kernel."""
    found = [program.options[layer.name] for layer in item.layers if layer.name in program.options]
    forms = " and ".join(options.chosen.form for options in found)
    return Work(forms, sum(options.cycles for options in found)) if found else None


def kept_macs_of(program: Program) -> dict[str, float]:
    """Step -> multiply-accumulates that it computes."""
    found: dict[str, float] = {}
    for step in program.steps:
        found[step.name] = found.get(step.name, 0.0) + step.kept_macs
    return found


def moved_by(program: Program) -> dict[str, tuple[int, int]]:
    """Step -> bytes that it reads and writes."""
    found: dict[str, tuple[int, int]] = {}
    for step in program.steps:
        read, written = found.get(step.name, (0, 0))
        found[step.name] = read + step.read_bytes, written + step.written_bytes
    return found


def predict(network: Network, table: LatencyTable, cells: Mapping[str, Cell]) -> Prediction:
    """Seconds of ``network`` with each item (by its step) under its cell, its neighbours' cells counted in.

    Which weights go is decided by their magnitudes; other criteria take other ones, but about as many filters.

    Raises:
        DataError: the table has nothing about the network, or about a scheme on one of its layers.
    """
    alone = table.predict(network, cells)
    given = {step: cell for step, cell in cells.items() if cell[1] > 1}
    if not given:
        return alone
    pruned = network.pruned(given)
    program = network.compile(pruned)
    kept, moved, dense = kept_macs_of(program), moved_by(program), moved_by(network.program)
    seconds = {}
    for item in network.items:
        left = item.total(kept) / network.kept_macs(item, pruned)
        work = work_of(program, item)
        found = alone.items[item.step]
        if work is None or not left:  # nothing models it: its part of the time
            seconds[item.step] = found * min(1.0, left)
        else:
            cell = cells.get(item.step, (DENSE, 1.0))
            like = cell if cell[0].prunes else (_smaller(item, moved, dense), 1.0)
            seconds[item.step] = _seconds(item, table, like, work, left, found)
    rest = alone.rest * _part_of_rest(network, moved, dense)
    return Prediction(rest + sum(seconds.values()), seconds, rest, alone.interpolated)


def _smaller(item: Item, moved: Moved, dense: Moved) -> Scheme:
    """What an unpruned item is like that has become smaller: it lost filters, or channels, whichever are fewer now."""
    reads, writes = (item.total({step: each[side] for step, each in moved.items()}) /
                     item.total({step: each[side] for step, each in dense.items()}) for side in (0, 1))
    return _FEWER_FILTERS if writes < reads else _FEWER_CHANNELS


def _part_of_rest(network: Network, moved: Moved, dense: Moved) -> float:
    """The part of their bytes that steps without weights to prune still move."""
    pruned = {layer.name for item in network.items for layer in item.layers}
    left, whole = (sum(sum(each) for step, each in steps.items() if step not in pruned) for steps in (moved, dense))
    return min(1.0, left / whole) if whole else 1.0


def _seconds(item: Item, table: LatencyTable, cell: Cell, work: Work, left: float, alone: float) -> float:
    """Seconds of an item that is compiled to ``work``.

    ``left`` is the part of its own work that its neighbours leave it, ``alone`` what it takes if that is all. Between
    two rates of one form seconds are interpolated. Else they are those of the nearest cell that was measured, of the
    same form, and the same scheme where there is such a one, in proportion to the cycles; neighbours make no measured
    cell slower.
    """
    scheme, rate = cell
    curve = {1.0: table.dense(item), **table.curve(item.key, scheme)}
    as_measured = rate in curve and _form(item, table, cell) in (work.form, "")
    if left > 1 - _SAME and (as_measured or (rate not in curve and _between_alike(item, table, cell, work))):
        return alone
    known = [(seconds, was) for at, seconds in curve.items() if (was := table.work(item.key, scheme, at))]
    others = [(seconds, was) for at, seconds in table.cells(item.key).items() if (was := table.work(item.key, *at))]
    alike = [(seconds, was) for seconds, was in known if was.form == work.form] or \
        [(seconds, was) for seconds, was in others if was.form == work.form] or known
    if not alike:
        return alone * min(1.0, left)
    seconds, was = min(alike, key=lambda point: abs(math.log(point[1].cycles / work.cycles)))
    found = seconds * work.cycles / was.cycles
    return min(found, alone) if as_measured else found


def _form(item: Item, table: LatencyTable, cell: Cell) -> str:
    """Of the kernel that a cell was measured in; '' where nothing models it."""
    was = table.work(item.key, *cell)
    return was.form if was else ""


def _between_alike(item: Item, table: LatencyTable, cell: Cell, work: Work) -> bool:
    """Whether the rates that were measured around a cell run in its form; true beyond the highest, where time stays."""
    scheme, rate = cell
    rates = list(table.curve(item.key, scheme))
    at = bisect.bisect_left(rates, rate)
    around = [table.work(item.key, scheme, r) for r in rates[max(at - 1, 0):at + 1]]
    return at == len(rates) or all(was is not None and was.form == work.form for was in around)
