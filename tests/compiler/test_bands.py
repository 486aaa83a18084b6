"""Depth-first execution: interleaved bands do the same work, in an order in which no band is ahead of its input."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import conv_cases
import other_cases
import pytest
from harness import Bundle, check, fused

from blockpunch.compiler import bands, compile_graph
from blockpunch.compiler.kernels.base import Band, Step
from blockpunch.compiler.program import StepInfo
from blockpunch.target import Target

TINY_CACHE = replace(Target.host(), l2_bytes=4096)
"""So small that every map of a test is larger."""


def chain() -> Bundle:
    """Inverted residuals, a strided block and a pool on one map: every kind of step with bands, and residuals."""
    b = Bundle()
    relu6 = fused("Clip", min=0.0, max=6.0)
    x = b.node("Neg", b.input(1, 6, 37, 41))
    for stride in (1, 2, 1):
        wide = b.conv(x, b.weights(14, 6, 1, 1), epilogue=[relu6])
        deep = b.conv(wide, b.weights(14, 1, 3, 3), pads=(1, 1, 1, 1), stride=(stride, stride), groups=14,
                      epilogue=[relu6])
        operands = [x] if stride == 1 else []
        epilogue = [fused("Add", 3)] if stride == 1 else []
        x = b.conv(deep, b.weights(6, 14, 1, 1), epilogue=epilogue, operands=operands)
    side = b.conv(x, b.weights(9, 6, 3, 3), pads=(1, 1, 1, 1), epilogue=[fused("Silu")])
    both = b.node("Concat", side, b.conv(x, b.weights(5, 6, 5, 5), pads=(2, 2, 2, 2)), axis=1)
    pooled = b.node("MaxPool", both, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1), dilation=(1, 1))
    b.output(b.conv(pooled, b.weights(8, 14, 3, 3), pads=(1, 1, 1, 1)), b.node("Neg", both))
    return b


def slices(source: str) -> list[tuple[int, int, int]]:
    """The table of slices of a model.c."""
    table = source[source.index("slices[] ="):]
    return [tuple(map(int, row)) for row in re.findall(r"\{ (\d+), (\d+), (\d+) \}", table)]  # type: ignore[misc]


def test_a_chain_is_interleaved_and_right() -> None:
    program = check(chain(), TINY_CACHE, ranges=(1, 2, 3))
    order = [step for step, _, _ in slices(program.source["model.c"])]
    assert order != sorted(order), "nothing was interleaved"


BUNDLES: list[Callable[[], Bundle]] = [conv_cases.conv_maps, conv_cases.depthwise, conv_cases.conv_epilogues,
                                       other_cases.windows, other_cases.concats]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.__name__)
def test_any_step_in_bands(bundle: Callable[[], Bundle]) -> None:
    check(bundle(), TINY_CACHE, ranges=(1, 3), flags=("-O1",))


def test_every_unit_runs_once() -> None:
    program = compile_graph(chain().graph, TINY_CACHE)
    whole = compile_graph(chain().graph, Target.host())
    for step in range(len(program.steps)):
        parts = sorted((begin, end) for s, begin, end in slices(program.source["model.c"]) if s == step)
        assert parts[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert len(whole.steps) == len(program.steps)


def step_of(name: str, source: str, counts: list[int], needs: list[int]) -> Step:
    """A step of one unit per band: ``counts`` rows are complete after each, ``needs`` rows of ``source`` before."""
    made = tuple(Band(((i, i + 1),), rows, ((source, need),))
                 for i, (rows, need) in enumerate(zip(counts, needs, strict=True)))
    return Step(StepInfo(name, "test", ""), len(counts), "", (source,), (name,), bands=made)


def test_the_deepest_step_that_can_goes_first() -> None:
    steps = [step_of("a", "x", [2, 4, 6], [2, 4, 6]), step_of("b", "a", [2, 6], [3, 6])]
    work = bands.order(steps, {"a": [0], "b": [1]}, {"x": 100, "a": 100, "b": 100}, 16)
    assert [(s.step, s.begin) for s in work.slices] == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1)]
    assert work.group == [0, 0]


def test_small_maps_run_one_step_after_the_other() -> None:
    steps = [step_of("a", "x", [2, 4, 6], [2, 4, 6]), step_of("b", "a", [2, 6], [3, 6])]
    work = bands.order(steps, {"a": [0], "b": [1]}, {"x": 100, "a": 100, "b": 100}, 10_000)
    assert [(s.step, s.begin, s.end) for s in work.slices] == [(0, 0, 3), (1, 0, 2)]
    assert work.group == [0, 1]
