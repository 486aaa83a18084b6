"""Maps without gaps between their rows, and pixels that fill no vector: right for every shape, taken where it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import conv_cases
import neon
import numpy as np
import pytest
from emulation import EMULATED, runs
from harness import Bundle, check, differences, fused, scratch_bytes

import blockpunch.compiler as compiler
from blockpunch.compiler import compile_graph, schedule, sides
from blockpunch.compiler.kernels import Kernel
from blockpunch.compiler.layout import Layout
from blockpunch.graph import interpreter
from blockpunch.graph.ir import Graph, Node
from blockpunch.target import Target


def no_gaps(pairs: Sequence[tuple[Node, Kernel]], graph: Graph, target: Target, *_: object) -> Layout:
    """Every convolution does without, whatever the model thinks of it."""
    return sides.layout_without(pairs, graph, target, frozenset(node.name for node, _ in pairs))


def rests() -> Bundle:
    """Planes of one pixel to half a vector beyond whole vectors; blocks of 4, 8 and 16 filters; operands, margins."""
    b = Bundle(81)
    for h, w in ((7, 7), (14, 14), (3, 11), (1, 35), (17, 2)):
        for filters, block, kernel in ((24, 8, 1), (13, 4, 3), (33, 16, 1), (20, 8, 3)):
            keep = np.repeat(b.rng.random((-(-filters // block), 9, kernel, kernel)) < 0.4, block, axis=0)[:filters]
            x, r = b.value(2, 9, h, w), b.value(2, filters, h, w)
            y = b.conv(x, b.weights(filters, 9, kernel, kernel, keep=keep), pads=conv_cases.same((kernel, kernel)),
                       epilogue=[fused("Add", 3), fused("Relu")], operands=[r])
            b.output(b.conv(y, b.weights(5, filters, 3, 3), pads=(1, 1, 1, 1)) if filters % 2 else y)
    return b


def right_on_neon(bundle: Bundle) -> None:
    inputs, target = bundle.sample(), Target.named("aarch64")
    program = compile_graph(bundle.graph, target)
    found = neon.run_model(program.source, program.weights, scratch_bytes(program, 2), inputs,
                           [shape for _, shape in program.outputs], target=target, ranges=2)
    errors = differences(bundle.graph, found, list(interpreter.run(bundle.graph, inputs).values()))
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(("bundle", "target"), [
    (conv_cases.conv_kernels, "host"), (conv_cases.conv_maps, "host"), (conv_cases.zeros, "host"), (rests, "host"),
    *((conv_cases.conv_maps, name) for name in (*EMULATED, "x86-64-v3")), (rests, "x86-64-v3"),
    (conv_cases.conv_kernels, "aarch64")])
def test_maps_without_gaps(monkeypatch: pytest.MonkeyPatch, bundle: Callable[[], Bundle], target: str) -> None:
    monkeypatch.setattr(compiler, "lay_out", no_gaps)
    chosen, b = Target.named(target), bundle()
    if target == "aarch64":
        right_on_neon(b)
    elif not runs(chosen):
        pytest.skip("not on this CPU")
    else:
        check(b, chosen, flags=("-O1",))


@pytest.mark.parametrize("target", ["host", "aarch64"])
def test_pixels_that_fill_no_vector(target: str) -> None:
    if target == "aarch64":
        right_on_neon(rests())
    else:
        check(rests(), target, flags=("-O1",))


def test_every_tile_takes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """All schedules of one layer whose last tile takes pixels along, with and without gaps."""
    monkeypatch.setattr(schedule, "_WORST", 1e9)
    b = Bundle(82)
    keep = np.repeat(b.rng.random((3, 40, 3, 3)) < 0.3, 8, axis=0)
    x = b.value(1, 40, 10, 10)
    b.output(b.conv(x, b.weights(24, 40, 3, 3, keep=keep), pads=(1, 1, 1, 1)))
    for lay_out in (sides.lay_out, no_gaps):
        monkeypatch.setattr(compiler, "lay_out", lay_out)
        for name, item in compile_graph(b.graph, Target.named("host")).options.items():
            choices = [c for c in item.choices if c.form == "pixels" and not c.grouped]
            assert len({c.chunk for c in choices}) > 2
            for choice in choices[::7]:
                check(b, "host", flags=("-O1",), choices={name: choice})


def stage(rate: float, side: int, channels: int) -> Bundle:
    """A convolution of 3x3 between two of 1x1, in blocks of 8 filters."""
    b = Bundle(83)
    x = b.value(1, channels, side, side)
    for kernel in (1, 3, 1):
        keep = np.repeat(b.rng.random((channels // 8, channels, kernel, kernel)) < 1 / rate, 8, axis=0)
        x = b.conv(x, b.weights(channels, channels, kernel, kernel, keep=keep), pads=conv_cases.same((kernel, kernel)))
    b.output(x)
    return b


@pytest.mark.parametrize(("rate", "side", "gaps"),
                         [(6.0, 7, False), (6.0, 14, False), (6.0, 112, True), (1.0, 14, True)])
def test_small_pruned_maps_go_without(rate: float, side: int, gaps: bool) -> None:
    """Where gaps are much of a row; not where rows are long, nor where a dense layer is faster by Winograd."""
    b = stage(rate, side, 64 if side > 50 else 256)
    program = compile_graph(b.graph, Target.named("x86-64-v4"))
    assert ("_shifts3" in program.source["model.c"]) is not gaps


def test_a_last_pixel_takes_no_vector() -> None:
    source = compile_graph(stage(6.0, 7, 64).graph, Target.named("x86-64-v4")).source["model.c"]
    assert "conv_8x3_and1of3(" in source  # 49 pixels: three vectors and one more
