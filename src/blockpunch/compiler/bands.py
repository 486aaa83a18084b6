"""Depth-first execution: layers on large maps run band of rows by band of rows, so that what one writes the next still
finds in the cache.

Nothing is computed twice and no buffer shrinks: only the order of the work changes. Steps whose work is ordered by rows
say what each band of rows needs of their inputs; within a group of such steps the deepest one that can go on does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockpunch.compiler.kernels import Step
from blockpunch.graph.ir import Graph

_LONGEST = 6  # steps per group: their buffers are all alive together


@dataclass(frozen=True)
class Slice:
    """A part of a step's work: units ``begin`` to ``end``."""

    step: int
    begin: int
    end: int


@dataclass(frozen=True)
class Order:
    """The order of the work, and the group that each step runs in (for the lives of buffers)."""

    slices: list[Slice]
    group: list[int]


def order(steps: Sequence[Step], producers: Mapping[str, Sequence[int]], floats: Mapping[str, int],
          cache_bytes: int) -> Order:
    """Interleave neighbouring steps that have bands and move more than the cache holds.

    Args:
        steps: in order of execution.
        producers: value name -> steps that write it.
        floats: size of each buffer.
        cache_bytes: what of the second-level cache a group may count on.
    """
    slices: list[Slice] = []
    group: list[int] = []
    at = 0
    while at < len(steps):
        size = 1
        while (at + size < len(steps) and size < _LONGEST and _joins(steps[at + size], steps[at], floats, cache_bytes)):
            size += 1
        members = range(at, at + size)
        slices += _interleave(steps, members, producers) if size > 1 else [Slice(at, 0, steps[at].units)]
        group += [at] * size
        at += size
    return Order(slices, group)


def _joins(step: Step, first: Step, floats: Mapping[str, int], cache_bytes: int) -> bool:
    def moved(s: Step) -> int:
        return 4 * sum(floats.get(name, 0) for name in (*s.reads, *s.writes))

    return bool(step.bands and first.bands) and min(moved(step), moved(first)) > cache_bytes


def _interleave(steps: Sequence[Step], members: range, producers: Mapping[str, Sequence[int]]) -> list[Slice]:
    """The deepest step that has its rows goes first; what is written outside the group is complete."""
    done = dict.fromkeys(members, 0)  # bands
    slices: list[Slice] = []

    def ready(step: int) -> bool:
        for value, rows in steps[step].bands[done[step]].needs:
            for maker in producers.get(value, ()):
                if maker in done and maker != step and _rows(steps[maker], done[maker]) < rows:
                    return False
        return True

    while any(done[step] < len(steps[step].bands) for step in members):
        step = next(s for s in reversed(members) if done[s] < len(steps[s].bands) and ready(s))
        slices += [Slice(step, begin, end) for begin, end in steps[step].bands[done[step]].units]
        done[step] += 1
    return slices


def _rows(step: Step, bands: int) -> int:
    return step.bands[bands - 1].rows if bands else 0


def producers_of(graph: Graph, step_of: Mapping[str, int]) -> dict[str, list[int]]:
    """Value name -> steps that write it, looking through nodes that only rename.

    Args:
        graph: the legalised graph.
        step_of: node name -> its step, for nodes that have one.
    """
    found: dict[str, list[int]] = {}
    for node in graph:
        makers = [step_of[node.name]] if node.name in step_of else []
        if not makers or node.op == "Concat":  # a part of a concatenation may have been written in place
            makers = [*makers, *(m for name in node.inputs for m in found.get(name, []))]
        for out in node.outputs:
            found[out] = makers
    return found
