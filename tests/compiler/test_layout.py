"""Where values live: buffers that are alive together never overlap, views stay inside them, margins are wide enough."""

from __future__ import annotations

from collections.abc import Callable

import conv_cases
import numpy as np
import other_cases
import pytest
from harness import Bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from random_cases import network

from blockpunch.compiler import compile_graph
from blockpunch.compiler.kernels import Step, kernels_for
from blockpunch.compiler.layout import Layout, Needs, View, assign
from blockpunch.compiler.legalise import legalise
from blockpunch.compiler.memory import plan
from blockpunch.compiler.program import ALIGN, StepInfo
from blockpunch.graph.ir import Graph
from blockpunch.target import Target

BUNDLES: list[Callable[[], Bundle]] = [conv_cases.conv_kernels, conv_cases.conv_maps, conv_cases.depthwise,
                                       other_cases.concats, other_cases.slices, other_cases.movement,
                                       other_cases.outputs, *(lambda s=s: network(s, 40) for s in range(6))]


def step(reads: tuple[str, ...], writes: tuple[str, ...]) -> Step:
    return Step(StepInfo("s", "test", "s"), 1, "", reads, writes)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Step], dict[str, int]]:
    names = [f"v{i}" for i in range(draw(st.integers(1, 14)))]
    sizes = {name: draw(st.integers(1, 400)) for name in names}
    some = st.lists(st.sampled_from([*names, "input"]), max_size=4).map(tuple)
    steps = [step(draw(some), draw(st.lists(st.sampled_from(names), min_size=1, max_size=2).map(tuple)))
             for _ in range(draw(st.integers(1, 14)))]
    return steps, sizes


@settings(max_examples=200, deadline=None)
@given(programs())
def test_buffers_alive_together_do_not_overlap(program: tuple[list[Step], dict[str, int]]) -> None:
    steps, sizes = program
    places, total = plan(steps, sizes)
    lives = {name: [i for i, s in enumerate(steps) if name in (*s.reads, *s.writes)] for name in sizes}
    assert set(places) == {name for name, uses in lives.items() if uses}
    for name, start in places.items():
        assert start % (ALIGN // 4) == 0 and start >= 0 and start + sizes[name] <= total
        for other, begin in places.items():
            together = lives[name][0] <= lives[other][-1] and lives[other][0] <= lives[name][-1]
            if name < other and together:
                assert start + sizes[name] <= begin or begin + sizes[other] <= start, (name, other)


def test_a_chain_needs_two_buffers() -> None:
    steps = [step((f"v{i}",), (f"v{i + 1}",)) for i in range(20)]
    assert plan(steps, {f"v{i}": 160 for i in range(21)})[1] == 320


def elements(view: View) -> np.ndarray:
    """Offsets of all elements of a view in its buffer."""
    offsets = np.array(view.offset)
    for size, stride in zip(view.shape, view.strides, strict=True):
        offsets = offsets[..., None] + np.arange(size) * stride
    return offsets


def laid_out(bundle: Callable[[], Bundle], target: Target) -> tuple[Graph, Layout, Needs]:
    graph = legalise(bundle().graph)
    needs = Needs()
    for node, kernel in kernels_for(graph):
        kernel.needs(node, graph, needs, target)
    return graph, assign(graph, needs, target.vector_floats), needs


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: getattr(bundle, "__name__", "network"))
@pytest.mark.parametrize("name", ["x86-64-v4", "aarch64"])
def test_views(bundle: Callable[[], Bundle], name: str) -> None:
    target = Target.named(name)
    graph, layout, needs = laid_out(bundle, target)
    outside = {*graph.inputs, *graph.outputs}
    for value, view in layout.views.items():
        places = elements(view)
        assert len(np.unique(places)) == places.size, f"{value}: two elements in one place"
        assert places.min() >= 0 and places.max() < layout.buffers[view.root], f"{value} leaves its buffer"
        assert view.root == value or view.root not in graph.inputs, f"{value} would be written into an input"
        if value in outside:
            assert view.contiguous and view.offset == 0 and view.plane is None, f"{value} is the caller's array"
        if view.plane:
            check_plane(value, view, needs)
    for a, b in needs.same_row:
        planes = [layout.views[v].plane for v in (a, b)]
        assert all(planes) and planes[0].row == planes[1].row, f"{a} and {b} must agree on the row"


def check_plane(value: str, view: View, needs: Needs) -> None:
    plane = view.plane
    assert plane is not None
    assert (plane.h, plane.w) == view.shape[2:] and view.strides[1:] == (plane.stride, plane.row, 1)
    margin = needs.margins.get(value)
    if margin is None:
        return
    assert plane.row >= margin.row
    assert plane.origin >= margin.top * plane.row + margin.left
    behind = plane.stride - plane.origin - plane.h * plane.row
    assert behind >= margin.bottom * plane.row + (margin.right - (plane.row - plane.w) if margin.bottom == 0 else 0)
    assert plane.zero_margin or not (margin.top or margin.bottom or margin.left or margin.right)


def test_joined_and_cut_values_are_views() -> None:
    b = Bundle()
    x = b.value(1, 4, 6, 6)
    parts = [b.conv(x, b.weights(n, 4, 3, 3), pads=(1, 1, 1, 1)) for n in (3, 5)]
    joined = b.node("Concat", *parts, axis=1)
    cut = b.node("Slice", joined, axes=(1,), starts=(2,), stops=(6,), steps=(1,))
    b.output(b.conv(cut, b.weights(2, 4, 3, 3), pads=(1, 1, 1, 1)))
    target = Target.named("x86-64-v3")
    _, layout, _ = laid_out(lambda: b, target)
    assert {layout.views[v].root for v in (*parts, cut)} == {joined}
    kinds = [step.kind for step in compile_graph(b.graph, target).steps]
    assert "move" not in kinds, "no copies"
